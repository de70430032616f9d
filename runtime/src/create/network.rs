//! What a new container's machine has of the network.

use std::path::Path;
use std::rc::Rc;

use oci_spec::runtime::Spec;

use super::Order;
use crate::error::Error;
use crate::joined::Host;
use crate::name_server;
use crate::network::{self, Connected, Namespace, NetworkRecord};
use crate::network_namespace;
use crate::sandbox::{Place, Vmm};
use crate::state::{Locked, Record};
use crate::undo::Undo;

/// The network devices of the machine, whose number cannot change later. A namespace that is new, and whose container this
/// command starts itself, stays empty unless a hook fills it.
pub(super) fn plan(order: &Order, place: &Place, host: Option<&Host>) -> Result<NetworkRecord, Error> {
    if host.is_some_and(Host::has_network) {
        return Ok(NetworkRecord::default());
    }
    let existing = place.network.existing().map(Namespace::opened).transpose().map_err(Error::NetworkDescriptor)?;
    let slots = network::slots(existing.as_ref(), order.detach || fills_network(&order.bundle.spec))?;
    let path = network_namespace::path(&order.bundle.spec).map(Path::to_owned);
    Ok(NetworkRecord { namespace: path, slots, ..NetworkRecord::default() })
}

/// Whether hooks of the host run before the container starts: engines have such a one make the interfaces.
fn fills_network(spec: &Spec) -> bool {
    let Some(hooks) = spec.hooks() else { return false };
    #[allow(deprecated, reason = "engines still write prestart hooks")]
    let kinds = [hooks.prestart(), hooks.create_runtime()];
    kinds.into_iter().flatten().any(|hooks| !hooks.is_empty())
}

/// Leads the interfaces of the sandbox's namespace, as they are now, into its machine. Those in a user's VMM's are led in later,
/// one by one.
pub(super) fn connect(
    vmm: &Vmm,
    record: &mut Record,
    locked: &Locked,
    undo: &mut Undo,
) -> Result<Vec<Connected>, Error> {
    if record.network.slots == 0 || record.user_namespace {
        return Ok(Vec::new());
    }
    let (process, namespace) = (vmm.process, Rc::new(Namespace::of(vmm.process)?));
    let same = Rc::clone(&namespace);
    undo.push(move || drop(network::disconnect(&same, process)));
    let connected = network::connect(&namespace, process, &record.network)?;
    record.network.interfaces.extend(connected.iter().map(|one| one.led.clone()));
    if !connected.is_empty() {
        locked.write(record)?;
    }
    Ok(connected)
}

/// Whether the container asks the name server of its namespace from the start; if not, what to look at later is remembered.
pub(super) fn plan_name_server(order: &Order, record: &mut Record) -> bool {
    record.network.resolv_conf = name_server::resolv_conf(&order.bundle.spec);
    record.network.resolv_conf.take_if(|file| name_server::is_asked(file)).is_some()
}
