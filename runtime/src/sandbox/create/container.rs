//! The container in its guest.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use vmm::control::{NewContainer, Reply, Request};

use super::claim::Claim;
use super::error::CreateError;
use super::machine::Machine;
use super::plan::GuestPlan;
use super::request::CreateRequest;
use crate::base::container_id::ContainerId;
use crate::files::shares::Share;
use crate::host::network::AttachedInterface;
use crate::host::scm_rights::send_pidfd;
use crate::sandbox::connection::{Connection, RequestError};
use crate::sandbox::error::SandboxError;
use crate::sandbox::pid_file::write_pid_file;
use crate::sandbox::record::{Phase, Record};
use crate::sandbox::store::Locked;
use crate::sandbox::vmm_process::Vmm;
use crate::sandbox::{interfaces, name_server, shared};
use crate::spec::bundle::Bundle;
use crate::terminal::stdio::ProcessStdio;

/// A container that was made. Dropping it undoes everything; see [`Self::keep`] and [`Self::into_foreground`].
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    /// Name of its program.
    pub(crate) program: String,
    pub(crate) connection: Connection,
    pub(crate) stdio: ProcessStdio,
    pub(crate) vmm: Vmm,
    pub(crate) record: Record,
    // Last: while the rest is dropped, the claim still holds the container's lock.
    claim: Claim,
}

/// A container whose end the caller waits for.
pub(crate) struct ForegroundContainer {
    pub(crate) id: ContainerId,
    pub(crate) connection: Connection,
    pub(crate) stdio: ProcessStdio,
    pub(crate) vmm: Vmm,
    pub(crate) dir: PathBuf,
}

impl Container {
    /// Sets the container up in the guest of its machine, and limits its CPU time once that is done.
    pub(super) fn set_up(
        mut machine: Machine,
        mut connection: Connection,
        request: &CreateRequest,
        guest: GuestPlan,
        interfaces: Vec<AttachedInterface>,
    ) -> Result<Self, CreateError> {
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
        if machine.record.user_namespace {
            interfaces::update(&mut connection.client, &machine.claim.locked, &mut machine.record)?;
        }
        if machine.shared.is_some() {
            shared::become_proxy(&machine.vmm, &mut connection, &request.id, &machine.claim.locked.dir)?;
        }
        machine.placement.limit_cpu(&machine.record.cgroup)?;
        let Machine { vmm, record, program, stdio, claim, .. } = machine;
        Ok(Self { id: request.id.clone(), program, connection, stdio, vmm, record, claim })
    }

    /// Records that the container was made, and tells the caller which process it has on the host.
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

    /// Its directory, which is locked.
    pub(crate) fn locked(&self) -> &Locked {
        &self.claim.locked
    }

    /// Explains why a request about it failed.
    pub(crate) fn explain(&mut self, error: RequestError) -> SandboxError {
        SandboxError::explain(error.about(&self.program), &mut self.vmm, &self.claim.locked.dir)
    }

    /// Leaves it to later commands.
    pub(crate) fn keep(self) {
        self.claim.keep();
    }

    /// Leaves it as it is and its lock to others, for a caller that stays with it.
    pub(crate) fn into_foreground(self) -> ForegroundContainer {
        let dir = self.claim.locked.dir.clone();
        self.claim.keep();
        ForegroundContainer { id: self.id, connection: self.connection, stdio: self.stdio, vmm: self.vmm, dir }
    }
}

/// Whether the container asks the name server of its namespace from the start. If not, the file to look at later is recorded.
fn plan_name_server(bundle: &Bundle, record: &mut Record) -> bool {
    record.network.resolv_conf = name_server::resolv_conf(&bundle.spec);
    record.network.resolv_conf.take_if(|file| name_server::is_asked(file)).is_some()
}

/// Everything that the VMM needs to make the container.
struct Setup<'a> {
    id: &'a ContainerId,
    bundle: &'a Bundle,
    guest: GuestPlan,
    stdio: &'a ProcessStdio,
    interfaces: Vec<AttachedInterface>,
    name_server: bool,
    timeout: Duration,
}

/// Sends all requests at once and waits for the answer to the last one: the guest boots meanwhile.
fn set_up(connection: &mut Connection, setup: Setup) -> Result<(), RequestError> {
    let GuestPlan { files, seccomp } = setup.guest;
    for Share { name, options, source } in files.shares {
        connection.client.send(&Request::AddShare { name, options }, &[source.as_fd()])?;
    }
    let interfaces = setup.interfaces.iter();
    let (taps, interfaces): (Vec<_>, Vec<_>) = interfaces.map(|one| (one.tap(), one.record.interface.clone())).unzip();
    let request = Request::Create(Box::new(NewContainer {
        container: setup.id.to_string(),
        spec: files.spec,
        bundle: setup.bundle.dir.clone(),
        stdio: setup.stdio.kind,
        seccomp,
        interfaces,
        special_files: files.special,
        name_server: setup.name_server,
    }));
    let sockets = files.sockets.iter().map(AsFd::as_fd).collect();
    let fds = [setup.stdio.fds(), taps, sockets].concat();
    let step = "boot the guest and create the container";
    match connection.call(&request, &fds, step, setup.timeout)? {
        Reply::Process { .. } | Reply::Done => Ok(()),
        _ => Err(RequestError::Confused),
    }
}
