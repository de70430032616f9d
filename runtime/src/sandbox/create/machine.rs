//! The host's side of a new container's machine: its record, its VMM in a cgroup and namespaces, and its network.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use vmm::config::{SandboxConfig, TemplateUse};
use vmm::control::{Client, ClientError, Reply, Request};

use super::claim::Claim;
use super::error::CreateError;
use super::network;
use super::plan::MachinePlan;
use super::request::CreateRequest;
use crate::base::config::Config;
use crate::base::error_chain::chain;
use crate::base::log::Log;
use crate::base::timestamp;
use crate::base::undo::UndoStack;
use crate::files::shares::{Share, clone_following};
use crate::host::cgroup::Cgroup;
use crate::host::cgroup::placement::{self, Placement};
use crate::host::hooks::{self, HookError};
use crate::host::mount_trees;
use crate::host::network::{AttachedInterface, NetworkRecord};
use crate::host::process::{HostProcess, boot_id};
use crate::host::signals::Signals;
use crate::sandbox::connection::{Connection, RequestError};
use crate::sandbox::context::Context;
use crate::sandbox::control_socket::{control, peer};
use crate::sandbox::error::SandboxError;
use crate::sandbox::helper;
use crate::sandbox::machine_files::MachineFiles;
use crate::sandbox::record::{Phase, Record};
use crate::sandbox::shared::SharedSandbox;
use crate::sandbox::store::Store;
use crate::sandbox::template::{self, TemplateStore, TemplateStoreError};
use crate::sandbox::vmm_process::{END_TIMEOUT, Vmm, VmmError, VmmOptions, spawn};
use crate::spec::sizing::{Size, host_cpus};
use crate::terminal::stdio::{ProcessStdio, StdioOptions, console_size};

/// Time in which a VMM that is ending has ended.
const ENDING_TIMEOUT: Duration = Duration::from_secs(1);

/// A running VMM, and what belongs to it on the host. Dropping it undoes the creation.
pub(super) struct Machine {
    pub(super) vmm: Vmm,
    pub(super) record: Record,
    pub(super) placement: Placement,
    pub(super) config: Config,
    /// The shared sandbox that the container is created in, if any. Then the VMM becomes the container's proxy.
    pub(super) shared: Option<SharedSandbox>,
    /// Name of the container's program.
    pub(super) program: String,
    /// Whether there is no template of which the machine could have started.
    lacks_template: bool,
    /// The request that configures the VMM, while its answer is still to be waited for.
    configured: Option<u64>,
    pub(super) stdio: ProcessStdio,
    // The last field: the claim holds the container's lock while the other fields are dropped.
    pub(super) claim: Claim,
}

/// Opens the streams of the container's process and blocks signals, which are read from then on.
pub(super) fn open_streams(request: &CreateRequest) -> Result<(ProcessStdio, Signals), CreateError> {
    let stdio = ProcessStdio::open(StdioOptions {
        terminal: request.bundle.has_terminal(),
        detach: request.detach,
        console_socket: request.console_socket.as_deref(),
        size: console_size(request.bundle.process()?),
    })?;
    let signals = Signals::block(stdio.terminal.is_some()).map_err(CreateError::Signals)?;
    Ok((stdio, signals))
}

impl Machine {
    /// Records the machine, starts its VMM and moves it into its cgroup.
    pub(super) fn start(
        request: &CreateRequest,
        plan: MachinePlan,
        mut claim: Claim,
        stdio: ProcessStdio,
        context: &Context,
    ) -> Result<Self, CreateError> {
        let MachinePlan { config, shared, size, limits, namespaces, network } = plan;
        let program = request.bundle.program()?;
        let (policy, path) = (context.cgroup_policy, request.bundle.cgroups_path());
        let (placement, cgroup) = Placement::plan(policy, context.caller, &request.id, path, limits)?;
        let mut record = record(request, cgroup, size, network)?;
        record.scope = placement.scope().cloned();
        record.user_namespace = namespaces.maps.belong_to_user;
        // The record is written before the cgroup and the VMM exist, so that `delete` finds both if this process is killed.
        claim.locked.write(&record)?;
        push_poststop(&mut claim.undo, &record, &context.log);
        placement::push_removal(&mut claim.undo, record.cgroup.clone(), record.scope.clone());
        let vmm = spawn(&vmm_options(&config, &claim, &stdio, request)?, &namespaces, &context.log)?;
        push_kill(&mut claim.undo, vmm.process);
        record.vmm = vmm.process;
        claim.locked.write(&record)?;
        record.cgroup = placement.enter(std::mem::take(&mut record.cgroup), vmm.process.pid, &context.log)?;
        context.log.debug(&format!("{} runs as process {}", config.vmm.display(), vmm.process.pid));
        Ok(Self {
            vmm,
            record,
            placement,
            config,
            shared,
            program,
            lacks_template: false,
            configured: None,
            stdio,
            claim,
        })
    }

    /// Runs the hooks that come before the guest boots.
    pub(super) fn run_hooks(&self) -> Result<(), HookError> {
        hooks::run_creating(self.record.hook_container())
    }

    /// Connects to the VMM that serves the container: its own, or that of the shared sandbox.
    pub(super) fn connect(&self, signals: Signals) -> Result<Connection, CreateError> {
        let client = match self.shared {
            None => Client::from_stream(self.vmm.control.try_clone().map_err(VmmError::Socket)?),
            Some(_) => control(&self.claim.locked.dir).map_err(RequestError::from)?,
        };
        let pid = self.vmm.process.pid;
        let vmm = self.vmm.process.open().map_err(|source| VmmError::Examine { pid, source })?;
        Ok(Connection::new(client, Some(signals), vmm))
    }

    /// Boots the guest without waiting for it, unless the sandbox is shared and its guest runs already. Then attaches the interfaces
    /// of the network namespace.
    pub(super) fn boot(
        &mut self,
        connection: &mut Connection,
        request: &CreateRequest,
        store: &Store,
        log: &Log,
    ) -> Result<Vec<AttachedInterface>, CreateError> {
        if self.shared.is_none() {
            let dir = &self.claim.locked.dir;
            let helper = helper::start(&self.config.program, store, &self.record, dir)?;
            let console_log = request.bundle.console_log();
            let files = MachineFiles::open(&self.config, console_log.as_deref(), dir, helper)?;
            let template = if console_log.is_some() { None } else { self.find_template(log) };
            let configure = Request::Configure(self.sandbox_config(request, console_log.is_some(), template.is_some()));
            let descriptors: Vec<_> = files.descriptors().into_iter().chain(template.iter().map(AsFd::as_fd)).collect();
            let sent = connection.client.send(&configure, &descriptors);
            let id = sent.map_err(|error| self.explain(error.into()))?;
            // The answer says whether the template could be used, and that the VMM has left the host's mounts.
            self.configured = (template.is_some() || !self.record.user_namespace).then_some(id);
        }
        network::attach(&self.vmm, &mut self.record, &mut self.claim)
    }

    /// Finds the cause of a failed request.
    pub(super) fn explain(&mut self, error: RequestError) -> SandboxError {
        SandboxError::explain(error.for_program(&self.program), &mut self.vmm, &self.claim.locked.dir)
    }

    /// Clones the mounts that follow the host's into the mount namespace of the VMM that serves the container. A VMM of its own has
    /// left the host's mounts when it is configured. A user may not clone mounts.
    pub(super) fn clone_mounts(
        &mut self,
        connection: &mut Connection,
        shares: &mut [Share],
        log: &Log,
    ) -> Result<(), CreateError> {
        if let Some(id) = self.configured.take() {
            let answer = connection.wait_for(id, "start the virtual machine", self.config.start_timeout);
            let reply = answer.map_err(|error| self.explain(error))?;
            self.replace_template(&reply, log);
        }
        if self.record.user_namespace {
            return Ok(());
        }
        match self.server(connection).map_or(Ok(()), |vmm| clone_following(shares, vmm)) {
            // A VMM that has ended has no mount namespace. Its log says why it ended.
            Err(_) if self.vmm.process.wait(ENDING_TIMEOUT) => Err(self.explain(ClientError::Closed.into()).into()),
            cloned => cloned.map_err(CreateError::Mounts),
        }
    }

    /// The VMM that serves the container's files; `None` if it has ended.
    fn server(&self, connection: &Connection) -> Option<HostProcess> {
        if self.shared.is_some() { peer(&connection.client) } else { Some(self.vmm.process) }
    }

    /// Makes the root file system read-only for the VMM, once the guest has made its mount points. Without root, the VMM has the host's
    /// own mount.
    pub(super) fn make_read_only(&self, connection: &Connection, root: BorrowedFd) -> Result<(), CreateError> {
        match self.server(connection).filter(|_| !self.record.user_namespace) {
            Some(vmm) => mount_trees::make_read_only(vmm, root).map_err(CreateError::ReadOnlyRoot),
            None => Ok(()),
        }
    }

    /// Opens the template that the machine starts from. Without one it boots.
    fn find_template(&mut self, log: &Log) -> Option<File> {
        let (config, record) = (&self.config, &self.record);
        let is_suitable =
            record.network.slots <= template::NETWORK_SLOTS && record.machine.memory_mib >= template::MEMORY_MIB;
        if !config.template || !is_suitable {
            return None;
        }
        let name = template::name(config).ok()?;
        match template::find(config, &name) {
            Ok(found) => {
                self.lacks_template = found.is_none();
                found
            }
            Err(error) => {
                warn_of_template(&chain(&error), log);
                None
            }
        }
    }

    /// Removes a template that the VMM has refused. A user cannot remove root's, and gets one of their own in its place.
    fn replace_template(&mut self, reply: &Reply, log: &Log) {
        let Reply::TemplateRefused { cause } = reply else { return };
        warn_of_template(cause, log);
        let removed = template::name(&self.config).and_then(|name| TemplateStore::new(&self.config).remove(&name));
        match removed {
            Ok(()) | Err(TemplateStoreError::Unknown(_)) => self.lacks_template = true,
            Err(error) => log.warn(&format!("cannot replace the template: {}", chain(&error))),
        }
    }

    /// Has the template that the machine lacks made for later starts. A start that fails makes none: the cause may be a file that a
    /// template is made of.
    pub(super) fn make_missing_template(&self, log: &Log) {
        if self.lacks_template {
            template::make_in_background(&self.config, log);
        }
    }

    fn sandbox_config(&self, request: &CreateRequest, has_console_log: bool, has_template: bool) -> SandboxConfig {
        let (config, record) = (&self.config, &self.record);
        SandboxConfig {
            memory_mib: record.machine.memory_mib,
            vcpus: record.machine.vcpus,
            max_vcpus: host_cpus().min(config.max_vcpus),
            has_cgroup: !record.cgroup.is_none(),
            network_slots: record.network.slots,
            main_container: request.id.to_string(),
            has_console_log,
            template: if has_template { TemplateUse::Start } else { TemplateUse::None },
            jail: self.vmm.jail,
        }
    }
}

fn warn_of_template(cause: &str, log: &Log) {
    log.warn(&format!("the machine boots, because its template cannot be used: {cause}"));
}

fn vmm_options<'a>(
    config: &'a Config,
    claim: &'a Claim,
    stdio: &'a ProcessStdio,
    request: &CreateRequest,
) -> Result<VmmOptions<'a>, CreateError> {
    // The host's OOM killer is to treat the VMM as it would treat the container. A score that is inherited from an engine, which
    // protects itself, is not.
    let oom_score_adj = request.bundle.process()?.oom_score_adj().unwrap_or_default();
    Ok(VmmOptions { program: &config.vmm, dir: &claim.locked.dir, terminal: stdio.console(), oom_score_adj })
}

fn record(
    request: &CreateRequest,
    cgroup: Cgroup,
    machine: Size,
    network: NetworkRecord,
) -> Result<Record, CreateError> {
    Ok(Record {
        id: request.id.to_string(),
        phase: Phase::Creating,
        vmm: HostProcess::NONE,
        user_namespace: false,
        boot_id: boot_id().map_err(CreateError::BootId)?,
        bundle: request.bundle.dir.clone(),
        rootfs: request.bundle.rootfs(),
        created: timestamp::rfc3339_nanoseconds(SystemTime::now()),
        annotations: request.bundle.spec.annotations().clone().unwrap_or_default(),
        cgroup,
        scope: None,
        machine,
        resources: None,
        hooks: request.bundle.spec.hooks().clone(),
        network,
    })
}

/// Adds the poststop hooks to `undo`: they run as for a container that is deleted.
fn push_poststop(undo: &mut UndoStack, record: &Record, log: &Rc<Log>) {
    if record.hooks.is_some() {
        let (record, log) = (record.clone(), log.clone());
        undo.push(move || hooks::run_poststop(record.hook_container(), &log));
    }
}

/// Adds the end of the VMM to `undo`.
fn push_kill(undo: &mut UndoStack, process: HostProcess) {
    undo.push(move || {
        if process.kill_and_wait(END_TIMEOUT) {
            // The VMM is a child of this process, which has to reap it.
            let _ = waitpid(Pid::from_raw(process.pid), None);
        }
    });
}
