//! Changes the limits of a container, and with them the size of its machine.

use std::path::Path;
use std::time::Duration;

use agent::ContainerRequest;
use oci_spec::runtime::{LinuxResources, Spec};
use serde_json::Value;
use thiserror::Error;
use vmm::control::{Client, Reply, Request};

use super::connection::RequestError;
use super::context::Context;
use super::control_socket::control;
use super::record::{Phase, Record};
use super::status::status;
use super::store::{StateError, Store};
use crate::base::container_id::ContainerId;
use crate::host::cgroup::placement::{self, PlacementError};
use crate::spec::block_io;
use crate::spec::guest::remove_host_cpus;
use crate::spec::limits::Limits;
use crate::spec::resources::{ResourcesError, merge, remove_kernel_memory};
use crate::spec::sizing::{Size, SizeError, changed_memory, changed_vcpus};

/// Time limit for a guest to set limits. A memory limit below the current use makes its kernel reclaim memory or kill a process.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit for a guest to plug or unplug memory. The VMM checks that it makes progress.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(120);

/// The reason why limits were not changed.
#[derive(Debug, Error)]
pub(crate) enum UpdateError {
    #[error("container not running")]
    NotRunning,
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Resources(#[from] ResourcesError),
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

impl UpdateError {
    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Request(error) => error.exit_code(),
            _ => None,
        }
    }
}

/// Changes the limits that `change` contains: `linux.resources`, of which any part may be missing.
///
/// # Errors
/// A limit could not be set. The previous limits are then restored as far as possible.
pub(crate) fn update(context: &Context, id: &ContainerId, change: Value) -> Result<(), UpdateError> {
    let locked = context.store.lock(id)?;
    let mut record = context.store.record(id)?;
    if status(&record, &locked.dir) == Phase::Stopped {
        return Err(UpdateError::NotRunning);
    }
    let before = current(&context.store, id, &record)?;
    let mut after = merge(before.linux().as_ref().and_then(|linux| linux.resources().as_ref()), change)?;
    remove_kernel_memory(&mut after, &context.log);
    let after = with_resources(&before, after);
    let wanted =
        if record.has_machine() { Resize::between(&before, &after, record.machine)? } else { Resize::default() };
    let machine = record.machine;
    let applied = apply(&locked.dir, &mut record, &after, wanted);
    match &applied {
        Ok(()) => record.resources = after.linux().as_ref().and_then(|linux| linux.resources().clone()),
        Err(_) => {
            // A partial update is undone. The caller gets the first failure; a failure to undo is ignored.
            let _ = apply(&locked.dir, &mut record, &before, wanted.reverted_to(machine));
        }
    }
    locked.write(&record)?;
    applied
}

/// Returns the specification with the current limits.
fn current(store: &Store, id: &ContainerId, record: &Record) -> Result<Spec, StateError> {
    let spec = store.spec(id)?;
    Ok(match &record.resources {
        Some(resources) => with_resources(&spec, resources.clone()),
        None => spec,
    })
}

fn with_resources(spec: &Spec, resources: LinuxResources) -> Spec {
    let mut spec = spec.clone();
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_resources(Some(resources));
    spec.set_linux(Some(linux));
    spec
}

/// A change of a machine's size. `None` leaves a part as it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Resize {
    memory_mib: Option<u64>,
    vcpus: Option<u8>,
}

impl Resize {
    /// Derives the change from that of the container's limits.
    fn between(before: &Spec, after: &Spec, machine: Size) -> Result<Self, SizeError> {
        Ok(Self { memory_mib: changed_memory(before, after)?, vcpus: changed_vcpus(before, after, machine) })
    }

    /// Returns the change that restores the previous size `machine`.
    fn reverted_to(self, machine: Size) -> Self {
        Self { memory_mib: self.memory_mib.map(|_| machine.memory_mib), vcpus: self.vcpus.map(|_| machine.vcpus) }
    }

    /// Splits the change into the parts that make the machine larger and smaller.
    fn split(self, machine: Size) -> (Self, Self) {
        let grown = Self {
            memory_mib: self.memory_mib.filter(|mib| *mib > machine.memory_mib),
            vcpus: self.vcpus.filter(|count| *count > machine.vcpus),
        };
        let shrunk = Self {
            memory_mib: self.memory_mib.filter(|mib| *mib < machine.memory_mib),
            vcpus: self.vcpus.filter(|count| *count < machine.vcpus),
        };
        (grown, shrunk)
    }

    /// Returns the size of the machine after the change.
    fn applied_to(self, machine: Size) -> Size {
        Size { memory_mib: self.memory_mib.unwrap_or(machine.memory_mib), vcpus: self.vcpus.unwrap_or(machine.vcpus) }
    }
}

/// Sets the limits of the container in the guest, which validates them, and those of its VMM. The machine grows before the limits
/// are set and shrinks afterwards.
fn apply(dir: &Path, record: &mut Record, spec: &Spec, resize: Resize) -> Result<(), UpdateError> {
    let mut client = control(dir).map_err(RequestError::from)?;
    let (grown, shrunk) = resize.split(record.machine);
    if grown != Resize::default() {
        limit_vmm(record, spec, grown.applied_to(record.machine))?;
        set_size(&mut client, grown, &mut record.machine)?;
    }
    limit_container(&mut client, record, spec)?;
    set_size(&mut client, shrunk, &mut record.machine)?;
    limit_vmm(record, spec, record.machine)
}

/// Resizes the machine. Before a part grows, `machine` is set to the new size, so that it covers what the guest may have got if the
/// request fails.
fn set_size(client: &mut Client, resize: Resize, machine: &mut Size) -> Result<(), UpdateError> {
    if let Some(count) = resize.vcpus {
        machine.vcpus = machine.vcpus.max(count);
        client.call(&Request::SetVcpus { count }, &[], Some(UPDATE_TIMEOUT)).map_err(RequestError::from)?;
        machine.vcpus = count;
    }
    if let Some(mib) = resize.memory_mib {
        machine.memory_mib = machine.memory_mib.max(mib);
        machine.memory_mib = set_memory(client, mib, *machine)?;
    }
    Ok(())
}

fn limit_container(client: &mut Client, record: &Record, spec: &Spec) -> Result<(), UpdateError> {
    let mut guest = spec.clone();
    remove_host_cpus(&mut guest);
    if record.has_machine() {
        block_io::remove_host_limits(&mut guest);
    }
    let resources = guest.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let request =
        Request::Container(ContainerRequest::Update { container: record.id.clone(), resources: Box::new(resources) });
    client.call(&request, &[], Some(UPDATE_TIMEOUT)).map_err(RequestError::from)?;
    Ok(())
}

/// Resizes the machine's memory. `mib` and the returned size, which the machine has afterwards, are in MiB.
fn set_memory(client: &mut Client, mib: u64, machine: Size) -> Result<u64, RequestError> {
    // The VMM's limit on the host follows from the reply, so it is validated: memory comes in blocks of 2 MiB, and memory that was
    // not unplugged was plugged before.
    let max = (mib + 1).max(machine.memory_mib);
    match client.call(&Request::SetMemory { mib }, &[], Some(MEMORY_TIMEOUT))? {
        Reply::Memory(mib) if mib <= max => Ok(mib),
        _ => Err(RequestError::UnexpectedReply),
    }
}

/// Limits the VMM to what a machine of this size needs.
fn limit_vmm(record: &Record, spec: &Spec, machine: Size) -> Result<(), UpdateError> {
    Ok(placement::update(&record.cgroup, record.scope.as_ref(), &Limits::of(spec, machine))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use agent::frame;
    use vmm::control::Answer;

    use super::*;

    #[test]
    fn a_reply_with_more_memory_than_was_requested_is_refused() {
        let machine = Size { memory_mib: 512, vcpus: 1 };
        let memory_after = |mib, reply| {
            let (ours, mut vmm) = UnixStream::pair().unwrap();
            // The first request of a connection has the id 1.
            frame::write(&mut vmm, &Answer { id: 1, result: Ok(reply) }).unwrap();
            set_memory(&mut Client::from_stream(ours), mib, machine).ok()
        };
        assert_eq!(memory_after(1023, Reply::Memory(1024)), Some(1024), "blocks are of 2 MiB");
        assert_eq!(memory_after(256, Reply::Memory(512)), Some(512), "no memory was unplugged");
        for (mib, replied) in [(1023, 1025), (256, 513), (1024, u64::MAX)] {
            assert_eq!(memory_after(mib, Reply::Memory(replied)), None, "{mib}, {replied}");
        }
        assert_eq!(memory_after(1024, Reply::Done), None);
    }
}
