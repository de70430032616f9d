//! The network of a new container's machine.

use std::path::Path;
use std::rc::Rc;

use oci_spec::runtime::Spec;

use super::claim::Claim;
use super::error::CreateError;
use super::request::CreateRequest;
use crate::host::network::{self, AttachedInterface, Namespace, NetworkRecord};
use crate::sandbox::record::Record;
use crate::sandbox::shared::SharedSandbox;
use crate::sandbox::vmm_process::{Place, Vmm};
use crate::spec::namespaces::network_path;

/// Plans the network devices of the machine, whose number cannot change later. A namespace that is new, and whose container the
/// caller starts itself, stays empty unless a hook fills it.
pub(super) fn plan(
    request: &CreateRequest,
    place: &Place,
    shared: Option<&SharedSandbox>,
) -> Result<NetworkRecord, CreateError> {
    if shared.is_some_and(SharedSandbox::has_network) {
        return Ok(NetworkRecord::default());
    }
    let existing = place.network.existing().map(Namespace::opened).transpose();
    let existing = existing.map_err(CreateError::NetworkDescriptor)?;
    let slots = network::slots(existing.as_ref(), request.detach || fills_network(&request.bundle.spec))?;
    let path = network_path(&request.bundle.spec).map(Path::to_owned);
    Ok(NetworkRecord { namespace: path, slots, ..NetworkRecord::default() })
}

/// Whether hooks of the host run before the container starts: engines have such a one make the interfaces.
fn fills_network(spec: &Spec) -> bool {
    let Some(hooks) = spec.hooks() else { return false };
    #[allow(deprecated, reason = "engines still write prestart hooks")]
    let kinds = [hooks.prestart(), hooks.create_runtime()];
    kinds.into_iter().flatten().any(|hooks| !hooks.is_empty())
}

/// Attaches the interfaces of the sandbox's namespace, as they are now, to its machine. Those of a VMM in a user namespace are
/// attached later, one by one.
pub(super) fn attach(vmm: &Vmm, record: &mut Record, claim: &mut Claim) -> Result<Vec<AttachedInterface>, CreateError> {
    if record.network.slots == 0 || record.user_namespace {
        return Ok(Vec::new());
    }
    let (process, namespace) = (vmm.process, Rc::new(Namespace::of(vmm.process)?));
    let same = Rc::clone(&namespace);
    claim.undo.push(move || drop(network::detach_all(&same, process)));
    let attachments = network::attach(&namespace, process, &record.network)?;
    record.network.interfaces.extend(attachments.iter().map(|one| one.record.clone()));
    if !attachments.is_empty() {
        claim.locked.write(record)?;
    }
    Ok(attachments)
}
