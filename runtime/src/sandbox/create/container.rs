//! A new container in its guest.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use agent::ContainerConfig;
use vmm::control::{NewContainer, Reply, Request};

use super::claim::Claim;
use super::error::CreateError;
use super::machine::Machine;
use super::plan::GuestPlan;
use super::request::CreateRequest;
use crate::base::container_id::ContainerId;
use crate::base::log::Log;
use crate::files::shares::Share;
use crate::host::network::AttachedInterface;
use crate::host::scm_rights::send_pidfd;
use crate::sandbox::connection::{Connection, RequestError};
use crate::sandbox::error::SandboxError;
use crate::sandbox::pid_file::write_pid_file;
use crate::sandbox::record::{Phase, Record};
use crate::sandbox::store::LockedDir;
use crate::sandbox::vmm_process::Vmm;
use crate::sandbox::{interfaces, name_server, shared};
use crate::spec::bundle::Bundle;
use crate::terminal::stdio::ProcessStdio;

/// A container that was created. Dropping it undoes the creation; see [`Self::commit`] and [`Self::into_foreground`].
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    /// Name of its program.
    pub(crate) program: String,
    pub(crate) connection: Connection,
    pub(crate) stdio: ProcessStdio,
    pub(crate) vmm: Vmm,
    pub(crate) record: Record,
    // The last field: the claim holds the container's lock while the other fields are dropped.
    claim: Claim,
}

/// A committed container whose end the caller waits for.
pub(crate) struct ForegroundContainer {
    pub(crate) id: ContainerId,
    pub(crate) connection: Connection,
    pub(crate) stdio: ProcessStdio,
    pub(crate) vmm: Vmm,
    pub(crate) dir: PathBuf,
}

impl Container {
    /// Sets the container up in the guest of its machine, and then limits the CPU time of the VMM.
    pub(super) fn set_up(
        mut machine: Machine,
        mut connection: Connection,
        request: &CreateRequest,
        mut guest: GuestPlan,
        interfaces: Vec<AttachedInterface>,
        log: &Log,
    ) -> Result<Self, CreateError> {
        machine.clone_mounts(&mut connection, &mut guest.files.shares, log)?;
        let read_only_root = guest.files.read_only_root().map_err(CreateError::Mounts)?;
        let setup = Setup {
            id: &request.id,
            bundle: &request.bundle,
            guest,
            stdio: &machine.stdio,
            interfaces,
            name_server: plan_name_server(&request.bundle, &mut machine.record),
            timeout: machine.config.start_timeout,
        };
        set_up(&mut connection, setup).map_err(|error| machine.explain(error))?;
        if let Some(root) = read_only_root {
            machine.make_read_only(&connection, root.as_fd())?;
        }
        if machine.record.user_namespace {
            interfaces::update(&mut connection.client, &machine.claim.locked, &mut machine.record)?;
        }
        if machine.shared.is_some() {
            shared::become_proxy(&machine.vmm, &mut connection, &request.id, &machine.claim.locked.dir)?;
        }
        machine.placement.limit_cpu(&machine.record.cgroup)?;
        machine.make_missing_template(log);
        let Machine { vmm, record, program, stdio, claim, .. } = machine;
        Ok(Self { id: request.id.clone(), program, connection, stdio, vmm, record, claim })
    }

    /// Records that the container was created, and reports its process on the host: its pidfd and its pid.
    pub(super) fn publish(&mut self, request: &CreateRequest) -> Result<(), CreateError> {
        self.record.phase = Phase::Created;
        self.claim.locked.write(&self.record)?;
        if let Some(path) = &request.pidfd_socket {
            send_pidfd(path, self.vmm.process, "standard")?;
        }
        if let Some(path) = &request.pid_file {
            write_pid_file(path, self.vmm.process.pid)?;
            let path = path.clone();
            self.claim.undo.push(move || drop(fs::remove_file(path)));
        }
        Ok(())
    }

    /// The container's locked directory.
    pub(crate) fn locked(&self) -> &LockedDir {
        &self.claim.locked
    }

    /// Finds the cause of a failed request.
    pub(crate) fn explain(&mut self, error: RequestError) -> SandboxError {
        SandboxError::explain(error.for_program(&self.program), &mut self.vmm, &self.claim.locked.dir)
    }

    /// Commits the creation, closes the connection and then releases the lock.
    pub(crate) fn commit(mut self) {
        self.claim.commit();
    }

    /// Commits the creation, and returns what a caller needs to wait for the container's end.
    pub(crate) fn into_foreground(mut self) -> ForegroundContainer {
        self.claim.commit();
        let dir = self.claim.locked.dir.clone();
        ForegroundContainer { id: self.id, connection: self.connection, stdio: self.stdio, vmm: self.vmm, dir }
    }
}

/// Whether the container uses the name server of its namespace from the start. If not, its `resolv.conf` is recorded, to be checked
/// again when interfaces are attached.
fn plan_name_server(bundle: &Bundle, record: &mut Record) -> bool {
    record.network.resolv_conf = name_server::resolv_conf(&bundle.spec);
    record.network.resolv_conf.take_if(|file| name_server::is_configured(file)).is_some()
}

/// The input of the requests that create the container.
struct Setup<'a> {
    id: &'a ContainerId,
    bundle: &'a Bundle,
    guest: GuestPlan,
    stdio: &'a ProcessStdio,
    interfaces: Vec<AttachedInterface>,
    name_server: bool,
    timeout: Duration,
}

/// Sends all requests at once, while the guest boots, and waits for the answer to the last one.
fn set_up(connection: &mut Connection, setup: Setup) -> Result<(), RequestError> {
    let GuestPlan { files, seccomp } = setup.guest;
    for Share { name, options, source } in files.shares {
        connection.client.send(&Request::AddShare { name, options }, &[source.as_fd()])?;
    }
    let interfaces = setup.interfaces.iter();
    let (taps, interfaces): (Vec<_>, Vec<_>) =
        interfaces.map(|attached| (attached.tap(), attached.record.interface.clone())).unzip();
    let request = Request::Create(Box::new(NewContainer {
        config: ContainerConfig {
            id: setup.id.to_string(),
            spec: files.spec,
            bundle: setup.bundle.dir.clone(),
            seccomp,
        },
        stdio: setup.stdio.kind,
        interfaces,
        special_files: files.special,
        name_server: setup.name_server,
    }));
    let sockets = files.sockets.iter().map(AsFd::as_fd).collect();
    let fds = [setup.stdio.fds(), taps, sockets].concat();
    let step = "boot the guest and create the container";
    match connection.call(&request, &fds, step, setup.timeout)? {
        Reply::Process { .. } | Reply::Done => Ok(()),
        _ => Err(RequestError::UnexpectedReply),
    }
}
