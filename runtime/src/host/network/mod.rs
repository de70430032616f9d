//! The network of a sandbox: every interface of its network namespace, attached to the guest.
//!
//! ```text
//!  the host's network │ the sandbox's namespace                     │ guest
//!    bridge ── veth ══╪══ eth0 ◄──────── tc: redirect ────────► vmrt0 (tap) ═══ VMM ═══ eth0
//! ```
//!
//! The engine's interface stays in the namespace, with its addresses. Every frame that it receives is redirected to a tap before
//! the namespace's own stack sees it, and every frame that the guest sends is redirected from the tap to it. The guest's interface
//! gets the same name, addresses and routes. So engines and CNI plugins need no knowledge of the guest.

mod anti_spoofing;
mod error;
mod interface;
mod link;
mod namespace;
mod record;
mod redirection;
mod tap;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::Interface;
use agent::netlink::Netlink;

use crate::host::process::HostProcess;
pub(crate) use error::NetworkError;
use link::Link;
pub(crate) use namespace::OpenNamespace;
pub(crate) use record::{InterfaceRecord, NetworkRecord};

/// Network devices of a machine whose namespace is empty and may get interfaces later: one for an interface, and a spare one.
const DEFAULT_SLOTS: u8 = 2;

/// Network devices besides those for the interfaces that exist already.
const SPARE_SLOTS: u8 = 1;

/// An interface of the sandbox's namespace that was just attached to a tap. The tap ends with its last descriptor.
pub(crate) struct AttachedInterface {
    pub(crate) record: InterfaceRecord,
    /// The tap, for the VMM.
    tap: OwnedFd,
}

impl AttachedInterface {
    /// The descriptor of the tap.
    pub(crate) fn tap(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

/// Returns the number of network devices of a new machine, which limits the number of its interfaces for good.
///
/// # Errors
/// The interfaces of an existing namespace cannot be listed, or are more than a machine can have.
pub(crate) fn count_slots(namespace: Option<&OpenNamespace>, may_be_filled: bool) -> Result<u8, NetworkError> {
    let Some(namespace) = namespace else { return Ok(if may_be_filled { DEFAULT_SLOTS } else { 0 }) };
    let found = namespace.run(|| Ok(link::list(&mut netlink()?)?.len()))?;
    match u8::try_from(found).ok().filter(|found| *found <= vmm::net::MAX_SLOTS) {
        Some(0) => Ok(0),
        Some(found) => Ok((found + SPARE_SLOTS).min(vmm::net::MAX_SLOTS)),
        None => Err(NetworkError::Refused {
            name: format!("number {found}"),
            reason: format!("a machine has at most {} network devices", vmm::net::MAX_SLOTS),
        }),
    }
}

/// Attaches every interface of `namespace` that is not in `record` to a tap.
///
/// # Errors
/// One cannot be attached. Then those that were attached before it are detached again.
pub(crate) fn attach(
    namespace: &OpenNamespace,
    vmm: HostProcess,
    record: &NetworkRecord,
) -> Result<Vec<AttachedInterface>, NetworkError> {
    let is_new = |link: &Link| record.interfaces.iter().all(|attached| attached.index != link.index);
    namespace.run(|| {
        let mut netlink = netlink()?;
        let mut attachments = Vec::new();
        for link in link::list(&mut netlink)?.into_iter().filter(is_new) {
            match attach_one(&mut netlink, &link, tag(vmm), record.anti_spoofing) {
                Ok(one) => attachments.push(one),
                Err(error) => {
                    // The caller gets the first failure. A failure to undo is ignored.
                    let _ = attachments
                        .iter()
                        .try_for_each(|one: &AttachedInterface| detach_one(&mut netlink, &one.record, vmm));
                    return Err(error);
                }
            }
        }
        Ok(attachments)
    })
}

/// Detaches interfaces from their taps and removes the taps.
pub(crate) fn detach(
    namespace: &OpenNamespace,
    vmm: HostProcess,
    attached: &[InterfaceRecord],
) -> Result<(), NetworkError> {
    namespace.run(|| {
        let mut netlink = netlink()?;
        attached.iter().try_for_each(|attached| detach_one(&mut netlink, attached, vmm))
    })
}

fn detach_one(netlink: &mut Netlink, attached: &InterfaceRecord, vmm: HostProcess) -> Result<(), NetworkError> {
    let removed =
        redirection::remove(netlink, attached.index, tag(vmm)).and_then(|()| link::remove(netlink, attached.tap));
    let step = "detach network interface";
    removed.map_err(|source| NetworkError::Interface { step, name: attached.interface.name.clone(), source })
}

/// Returns the interfaces in `record` that are no longer in `namespace`.
pub(crate) fn list_removed(
    namespace: &OpenNamespace,
    record: &NetworkRecord,
) -> Result<Vec<InterfaceRecord>, NetworkError> {
    let present = namespace.run(|| link::indexes(&mut netlink()?))?;
    Ok(record.interfaces.iter().filter(|attached| !present.contains(&attached.index)).cloned().collect())
}

/// Returns the interfaces in `record` whose settings in `namespace` have changed, with their new settings.
pub(crate) fn list_changed(
    namespace: &OpenNamespace,
    record: &NetworkRecord,
) -> Result<Vec<InterfaceRecord>, NetworkError> {
    namespace.run(|| {
        let mut netlink = netlink()?;
        let mut changed = Vec::new();
        for link in link::list(&mut netlink)? {
            let Some(attached) = record.interfaces.iter().find(|attached| attached.index == link.index) else {
                continue;
            };
            // The guest's interface keeps its name.
            let name = attached.interface.name.clone();
            let interface = Interface { name, ..interface::read(&mut netlink, &link)? };
            if attached.interface.differs(&interface) {
                changed.push(InterfaceRecord { interface, ..attached.clone() });
            }
        }
        Ok(changed)
    })
}

/// Sets the MTU of a changed interface on its tap, and with `anti_spoofing` the source addresses that its guest may send with.
pub(crate) fn update_tap(
    namespace: &OpenNamespace,
    changed: &InterfaceRecord,
    anti_spoofing: bool,
) -> Result<(), NetworkError> {
    let InterfaceRecord { index, tap, interface } = changed;
    let failed = |step| move |source| NetworkError::Interface { step, name: interface.name.clone(), source };
    namespace.run(|| {
        let mut netlink = netlink()?;
        let set = link::set_mtu(&mut netlink, *tap, interface.mtu);
        set.map_err(failed("set the MTU of the tap of network interface"))?;
        if anti_spoofing {
            let replaced = anti_spoofing::replace(&mut netlink, *tap, *index, interface);
            replaced.map_err(failed("restrict the source addresses of network interface"))?;
        }
        Ok(())
    })
}

/// Returns the tag of a sandbox's redirections, which distinguishes them from those of other sandboxes.
fn tag(vmm: HostProcess) -> u32 {
    vmm.pid.cast_unsigned()
}

fn attach_one(
    netlink: &mut Netlink,
    link: &Link,
    tag: u32,
    anti_spoofing: bool,
) -> Result<AttachedInterface, NetworkError> {
    let interface = interface::read(netlink, link)?;
    let device = tap::open().map_err(link.failed("open /dev/net/tun for network interface"))?;
    let tap = tap::Tap::create(device).map_err(link.failed("create a tap for network interface"))?;
    link::prepare_tap(netlink, &tap, link)?;
    redirection::add(netlink, link, tap.index, tag, anti_spoofing.then_some(&interface))?;
    Ok(AttachedInterface { record: InterfaceRecord { index: link.index, tap: tap.index, interface }, tap: tap.fd })
}

/// Removes the redirections of all interfaces of `namespace`, for a namespace that outlives the sandbox. They are found in the
/// kernel, so that unrecorded ones are removed as well.
pub(crate) fn detach_all(namespace: &OpenNamespace, vmm: HostProcess) -> Result<(), NetworkError> {
    namespace.run(move || {
        let mut netlink = netlink()?;
        link::indexes(&mut netlink)?.into_iter().try_for_each(|index| {
            let removed = redirection::remove(&mut netlink, index, tag(vmm));
            removed.map_err(|source| NetworkError::Netlink { step: "remove the redirection of an interface", source })
        })
    })
}

fn netlink() -> Result<Netlink, NetworkError> {
    Netlink::open().map_err(|source| NetworkError::Netlink { step: "open a netlink socket", source })
}
