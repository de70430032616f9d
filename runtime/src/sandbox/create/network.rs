//! The network of a new container's machine.

use std::path::Path;
use std::rc::Rc;

use oci_spec::runtime::Spec;

use super::claim::Claim;
use super::error::CreateError;
use super::request::CreateRequest;
use crate::host::network::{self, AttachedInterface, NetworkRecord, OpenNamespace};
use crate::sandbox::record::Record;
use crate::sandbox::shared::SharedSandbox;
use crate::sandbox::vmm_process::{Vmm, VmmNamespaces};
use crate::spec::hooks::HookPoint;
use crate::spec::namespaces::network_path;

/// Plans the network devices of the machine, whose number cannot change later. A new namespace may get interfaces from a hook, or from
/// the caller between `create` and `start`.
pub(super) fn plan(
    request: &CreateRequest,
    namespaces: &VmmNamespaces,
    shared: Option<&SharedSandbox>,
    anti_spoofing: bool,
) -> Result<NetworkRecord, CreateError> {
    if shared.is_some_and(SharedSandbox::has_network) {
        return Ok(NetworkRecord::default());
    }
    let existing = namespaces.network.existing().map(OpenNamespace::duplicate).transpose();
    let existing = existing.map_err(CreateError::NetworkDescriptor)?;
    let slots = network::count_slots(existing.as_ref(), request.detach || has_network_hooks(&request.bundle.spec))?;
    let path = network_path(&request.bundle.spec).map(Path::to_owned);
    Ok(NetworkRecord { namespace: path, slots, anti_spoofing, ..NetworkRecord::default() })
}

/// Whether hooks of the host run before the container starts. Engines create the interfaces in such a hook.
fn has_network_hooks(spec: &Spec) -> bool {
    let Some(hooks) = spec.hooks() else { return false };
    [HookPoint::Prestart, HookPoint::CreateRuntime].into_iter().any(|point| !point.of(hooks).is_empty())
}

/// Attaches the current interfaces of the sandbox's namespace to its machine. The interfaces of a VMM in a user namespace are attached
/// later, when the guest runs.
pub(super) fn attach(vmm: &Vmm, record: &mut Record, claim: &mut Claim) -> Result<Vec<AttachedInterface>, CreateError> {
    if record.network.slots == 0 || record.user_namespace {
        return Ok(Vec::new());
    }
    let (process, namespace) = (vmm.process, Rc::new(OpenNamespace::of_process(vmm.process)?));
    let same = Rc::clone(&namespace);
    claim.undo.push(move || drop(network::detach_all(&same, process)));
    let attached = network::attach(&namespace, process, &record.network)?;
    record.network.interfaces.extend(attached.iter().map(|interface| interface.record.clone()));
    if !attached.is_empty() {
        claim.locked.write(record)?;
    }
    Ok(attached)
}
