//! Making a container, all or nothing.

mod network;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use agent::{FailureKind, SeccompFilter};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxSeccomp, Spec};
use vmm::config::SandboxConfig;
use vmm::control::{Client, NewContainer, Reply, Request};

use crate::apparmor;
use crate::block_io;
use crate::bundle::Bundle;
use crate::capabilities;
use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::connection::{Connection, RequestError};
use crate::context::Context;
use crate::devices;
use crate::error::Error;
use crate::hooks;
use crate::host_process::{HostProcess, boot_id};
use crate::id::ContainerId;
use crate::interfaces;
use crate::joined::{self, Host};
use crate::limits::Limits;
use crate::log::Log;
use crate::network::{Connected, NetworkRecord};
use crate::network_namespace::NetworkNamespace;
use crate::placement::{self, Placement};
use crate::rights::send_pidfd;
use crate::rootless::{self, UserNamespace};
use crate::sandbox::{self, CONTROL_SOCKET, Place, SandboxError, Vmm};
use crate::seccomp;
use crate::shares::{self, HostFiles, Share};
use crate::signals::Signals;
use crate::sizing::{Size, host_cpus};
use crate::state::{Locked, Phase, Record, remove_dir};
use crate::stdio::{Stdio, Wanted, console_size};
use crate::timestamp;
use crate::undo::Undo;

/// File that gets the guest kernel's messages; from the bundle's directory, if relative.
pub(crate) const CONSOLE_LOG_ANNOTATION: &str = "dev.vmrt.console-log";

/// How long a killed VMM may take to be gone.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(10);

/// What to make.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) id: ContainerId,
    pub(crate) bundle: Bundle,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// The command does not stay with the container.
    pub(crate) detach: bool,
}

/// A container that was made, and everything that takes it back unless it is kept.
pub(crate) struct Created {
    pub(crate) id: ContainerId,
    pub(crate) program: String,
    pub(crate) connection: Connection,
    pub(crate) stdio: Stdio,
    pub(crate) vmm: Vmm,
    pub(crate) record: Record,
    // In this order: what was made is taken back before the lock is let go.
    undo: Undo,
    pub(crate) locked: Locked,
}

impl Created {
    /// Leaves the container to later commands.
    pub(crate) fn keep(self) {
        self.undo.keep();
    }

    /// Leaves the container as it is and the lock to others, for a command that stays with it.
    pub(crate) fn attach(self) -> Attached {
        self.undo.keep();
        Attached {
            id: self.id,
            connection: self.connection,
            stdio: self.stdio,
            vmm: self.vmm,
            dir: self.locked.dir.clone(),
        }
    }
}

/// A container whose end a command waits for.
pub(crate) struct Attached {
    pub(crate) id: ContainerId,
    pub(crate) connection: Connection,
    pub(crate) stdio: Stdio,
    pub(crate) vmm: Vmm,
    pub(crate) dir: PathBuf,
}

/// Makes a container. When a step fails, all before it are undone.
pub(crate) fn create(context: &mut Context, mut order: Order) -> Result<Created, Error> {
    let config = context.config()?;
    let host = Host::of(&order.bundle.spec, &context.store)?;
    if let Some(host) = &host {
        host.give_users(&mut order.bundle.spec, &context.store, &context.log)?;
    }
    let size = if host.is_some() { Size::NONE } else { Size::of(&order.bundle.spec, &config)? };
    let user = UserNamespace::of(&order.bundle.spec, context.caller)?;
    context.caller.check_kvm()?;
    let place = Place { user, network: NetworkNamespace::of(&order.bundle.spec)? };
    let network_record = network::plan(&order, &place, host.as_ref())?;
    order.bundle.take_what_is_old(&context.log);
    let mut files = open_files(&order, &place, host.as_ref(), &context.log)?;
    let seccomp = take_seccomp(&mut files.spec).map(|profile| seccomp::compile(&profile)).transpose()?;
    let locked = context.store.claim(&order.id)?;
    let mut undo = Undo::default();
    let dir = locked.dir.clone();
    undo.push(move || drop(remove_dir(&dir)));
    locked.write_spec(&order.bundle.spec)?;
    host.as_ref().map_or(Ok(()), |host| host.link(&locked.dir))?;
    let stdio = open_stdio(&order)?;
    let signals = Signals::take(stdio.terminal.is_some()).map_err(Error::Signals)?;
    context.timeline.reached("bundle checked");

    // Written before there is a cgroup and a VMM, so that both are found should this process be killed.
    let limits = Limits::of(&order.bundle.spec, size);
    let (placement, cgroup) = Placement::plan(context, &order.id, cgroups_path(&order), limits)?;
    let mut record = record(&order, cgroup, size, network_record)?;
    record.scope = placement.scope().cloned();
    record.user_namespace = place.user.is_some();
    locked.write(&record)?;
    push_poststop(&mut undo, &record, &context.log);
    placement::push_removal(&mut undo, &record);
    let mut vmm = spawn(context, &config, &locked, &stdio, place, &mut undo)?;
    record.vmm = vmm.process;
    locked.write(&record)?;
    placement.enter(&mut record, &context.log)?;
    context.log.debug(&format!("{} runs as process {}", config.vmm.display(), vmm.process.pid));
    context.timeline.reached("VMM spawned");
    hooks::run_creating(&record)?;

    let mut connection = connect(&vmm, host.as_ref(), &locked.dir, signals)?;
    let program = order.bundle.process()?.args().as_ref().and_then(|args| args.first()).cloned().unwrap_or_default();
    let ended = |error: RequestError, vmm: &mut Vmm| explain(error.about(&program), vmm, &locked.dir);
    if host.is_none() {
        let mut sandbox = sandbox_config(&order, &config, &record);
        sandbox.follow_interfaces = interfaces::follow_command(&config.program, &context.store, &record);
        configure(&mut connection, sandbox).map_err(|error| ended(error, &mut vmm))?;
    }
    let interfaces = network::connect(&vmm, &mut record, &locked, &mut undo)?;
    let name_server = network::plan_name_server(&order, &mut record);
    let (bundle, timeout) = (order.bundle.dir.clone(), config.start_timeout);
    let setup = Setup { files, bundle, seccomp, stdio: &stdio, interfaces, name_server, timeout };
    set_up(&mut connection, &order.id, setup).map_err(|error| ended(error, &mut vmm))?;
    if record.user_namespace {
        interfaces::update(&mut connection.client, &locked, &mut record)?;
    }
    if host.is_some() {
        joined::hand_over(&vmm, &mut connection, &order.id, &locked.dir)?;
    }
    placement.limit_cpu(&record)?;
    context.timeline.reached("container created");

    record.phase = Phase::Created;
    locked.write(&record)?;
    tell_pid(&order, vmm.process, &mut undo)?;
    Ok(Created { id: order.id, program, connection, stdio, vmm, record, undo, locked })
}

/// What the guest gets to see of the host, and the specification as it is for the guest.
fn open_files(order: &Order, place: &Place, host: Option<&Host>, log: &Log) -> Result<HostFiles, Error> {
    let mut files = shares::open_all(&order.id, &order.bundle)?;
    devices::take(&mut files.spec, log)?;
    if !files.own_devices.is_empty() {
        let places: Vec<_> = files.own_devices.iter().map(|place| place.display().to_string()).collect();
        log.warn(&format!("the guest's own devices are mounted in the place of the host's: {}", places.join(", ")));
    }
    if let Some(process) = files.spec.process_mut() {
        apparmor::leave_out_default(process, log);
        capabilities::leave_out_unfounded(process, log);
    }
    match host {
        Some(host) => host.lead_guest(&mut files.spec),
        // The files of a container in another's machine are served by that one's VMM, which is not to be limited: its guest refuses.
        None => block_io::leave_to_host(&mut files.spec),
    }
    if place.user.is_some() {
        rootless::map_to_themselves(&mut files.spec);
    }
    Ok(files)
}

/// Tells who asked for it which process the container has on the host.
fn tell_pid(order: &Order, process: HostProcess, undo: &mut Undo) -> Result<(), Error> {
    if let Some(path) = &order.pidfd_socket {
        send_pidfd(path, process, "standard")?;
    }
    if let Some(path) = &order.pid_file {
        write_pid_file(path, process.pid)?;
        let path = path.clone();
        undo.push(move || drop(fs::remove_file(path)));
    }
    Ok(())
}

/// The guest gets the compiled filter instead.
fn take_seccomp(spec: &mut Spec) -> Option<LinuxSeccomp> {
    let linux = spec.linux_mut().as_mut()?;
    let profile = linux.seccomp().clone();
    linux.set_seccomp(None);
    profile
}

fn open_stdio(order: &Order) -> Result<Stdio, Error> {
    Ok(Stdio::open(Wanted {
        terminal: order.bundle.has_terminal(),
        detach: order.detach,
        console_socket: order.console_socket.as_deref(),
        size: console_size(order.bundle.process()?),
    })?)
}

fn cgroups_path(order: &Order) -> Option<&Path> {
    order.bundle.spec.linux().as_ref()?.cgroups_path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

fn spawn(
    context: &Context,
    config: &Config,
    locked: &Locked,
    stdio: &Stdio,
    place: Place,
    undo: &mut Undo,
) -> Result<Vmm, SandboxError> {
    let vmm = sandbox::spawn(&config.vmm, &locked.dir, context.log.debug, stdio.console(), place)?;
    let process = vmm.process;
    undo.push(move || {
        if process.kill_and_wait(END_PATIENCE) {
            // It is this process's child: without this its zombie stays until this process ends, and perhaps longer.
            let _ = waitpid(Pid::from_raw(process.pid), None);
        }
    });
    Ok(vmm)
}

/// What a failed `create` has done is over then, as for a container that was deleted.
fn push_poststop(undo: &mut Undo, record: &Record, log: &Rc<Log>) {
    if record.hooks.is_some() {
        let (record, log) = (record.clone(), log.clone());
        undo.push(move || hooks::run_poststop(&record, &log));
    }
}

fn record(order: &Order, cgroup: Cgroup, machine: Size, network: NetworkRecord) -> Result<Record, Error> {
    Ok(Record {
        id: order.id.to_string(),
        phase: Phase::Creating,
        vmm: HostProcess::NONE,
        user_namespace: false,
        boot_id: boot_id().map_err(Error::BootId)?,
        bundle: order.bundle.dir.clone(),
        rootfs: order.bundle.rootfs(),
        created: timestamp::nanoseconds(SystemTime::now()),
        annotations: order.bundle.spec.annotations().clone().unwrap_or_default(),
        cgroup,
        scope: None,
        machine,
        resources: None,
        hooks: order.bundle.spec.hooks().clone(),
        network,
    })
}

/// Connects to the container's machine: that of its VMM, or of another container.
fn connect(vmm: &Vmm, host: Option<&Host>, dir: &Path, signals: Signals) -> Result<Connection, Error> {
    let client = match host {
        None => Client::from_stream(vmm.control.try_clone().map_err(SandboxError::Socket)?),
        Some(_) => sandbox::control(dir).map_err(RequestError::from)?,
    };
    Ok(Connection::new(client, Some(signals), vmm.process.open()))
}

fn sandbox_config(order: &Order, config: &Config, record: &Record) -> SandboxConfig {
    let annotations = order.bundle.spec.annotations().as_ref();
    let console_log = annotations.and_then(|annotations| annotations.get(CONSOLE_LOG_ANNOTATION));
    SandboxConfig {
        kernel: config.kernel.clone(),
        initramfs: config.initramfs.clone(),
        memory_mib: record.machine.memory_mib,
        vcpus: record.machine.vcpus,
        vcpus_most: host_cpus().min(config.max_vcpus),
        control_socket: CONTROL_SOCKET.into(),
        console_log: console_log.map(|path| order.bundle.dir.join(path)),
        has_cgroup: !record.cgroup.is_none(),
        network_slots: record.network.slots,
        follow_interfaces: Vec::new(),
        main_container: order.id.to_string(),
    }
}

/// Everything the VMM is told before it can make the container.
struct Setup<'a> {
    files: HostFiles,
    bundle: PathBuf,
    seccomp: Option<SeccompFilter>,
    stdio: &'a Stdio,
    interfaces: Vec<Connected>,
    name_server: bool,
    timeout: Duration,
}

/// Has the guest boot, without waiting for it.
fn configure(connection: &mut Connection, sandbox: SandboxConfig) -> Result<(), RequestError> {
    Ok(connection.client.send(&Request::Configure(sandbox), &[]).map(drop)?)
}

/// Sends all requests at once and waits for the last one's answer: the guest boots meanwhile.
fn set_up(connection: &mut Connection, id: &ContainerId, setup: Setup) -> Result<(), RequestError> {
    for Share { name, options, source } in setup.files.shares {
        connection.client.send(&Request::AddShare { name, options }, &[source.as_fd()])?;
    }
    let (taps, interfaces): (Vec<_>, Vec<_>) =
        setup.interfaces.iter().map(|one| (one.tap(), one.led.interface.clone())).unzip();
    let request = Request::Create(Box::new(NewContainer {
        container: id.to_string(),
        spec: setup.files.spec,
        bundle: setup.bundle,
        stdio: setup.stdio.kind,
        seccomp: setup.seccomp,
        interfaces,
        special_files: setup.files.special,
        name_server: setup.name_server,
    }));
    let sockets = setup.files.sockets.iter().map(AsFd::as_fd).collect();
    let fds = [setup.stdio.fds(), taps, sockets].concat();
    let step = "boot the guest and create the container";
    match connection.call(&request, &fds, step, setup.timeout)? {
        Reply::Process { .. } | Reply::Done => Ok(()),
        _ => Err(RequestError::Confused),
    }
}

/// A VMM that went away instead of answering, or that says the guest did, has told why in its log.
pub(crate) fn explain(error: RequestError, vmm: &mut Vmm, dir: &Path) -> Error {
    const PATIENCE: Duration = Duration::from_secs(1);
    if error.is_end() { SandboxError::Ended(vmm.ending(dir, PATIENCE)).into() } else { error.into() }
}

/// Whether the guest itself went away, so that its VMM ends by itself.
pub(crate) fn is_guest_death(error: &RequestError) -> bool {
    error.kind() == Some(FailureKind::GuestDied)
}

/// Writes a pid as engines read it, without a newline, so that no reader sees half of it.
pub(crate) fn write_pid_file(path: &Path, pid: i32) -> Result<(), Error> {
    let failed = |source: io::Error| Error::PidFile { path: path.into(), source };
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    fs::write(&temporary, pid.to_string()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_holds_the_number_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        write_pid_file(&path, 4242).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "4242");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(write_pid_file(&dir.path().join("no/pid"), 1), Err(Error::PidFile { .. })));
    }
}
