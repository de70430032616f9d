//! The network of a sandbox: every interface of its network namespace, attached to the guest.
//!
//! ```text
//!  the host's network │ the sandbox's namespace                     │ guest
//!    bridge ── veth ══╪══ eth0 ◄─ tc: all that comes in goes out ─► vmrt0 (tap) ═══ VMM ═══ eth0
//! ```
//!
//! An interface stays where the engine has put it, with its addresses. Whatever it receives is redirected to a tap
//! before the namespace's own stack sees it, and whatever the guest sends leaves through it; the guest's interface is
//! given the same name, addresses and routes. So no engine and no CNI plugin has to know of the guest.

mod error;
mod interface;
mod link;
mod namespace;
mod record;
mod tap;
mod traffic;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::Interface;
use agent::netlink::Netlink;

use crate::host::process::HostProcess;
pub(crate) use error::NetworkError;
use link::Link;
pub(crate) use namespace::Namespace;
pub(crate) use record::{Attached, NetworkRecord};

/// Devices of a machine whose namespace somebody may still fill: one for its interface, and one more.
const LATER: u8 = 2;

/// Devices besides those for the interfaces that are there already.
const SPARE: u8 = 1;

/// An interface of the sandbox's namespace that was just attached to the guest. The tap ends with its last descriptor.
pub(crate) struct Attachment {
    /// What is recorded of it.
    pub(crate) attached: Attached,
    /// The device for the VMM.
    tap: OwnedFd,
}

impl Attachment {
    pub(crate) fn tap(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

/// How many network devices the machine gets: those are all the interfaces it can ever have.
///
/// # Errors
/// The interfaces of an existing namespace cannot be listed, or are more than a machine can have.
pub(crate) fn slots(namespace: Option<&Namespace>, may_be_filled: bool) -> Result<u8, NetworkError> {
    let Some(namespace) = namespace else { return Ok(if may_be_filled { LATER } else { 0 }) };
    let found = namespace.run(|| Ok(link::list(&mut netlink()?)?.len()))?;
    match u8::try_from(found).ok().filter(|found| *found <= vmm::net::MAX_SLOTS) {
        Some(0) => Ok(0),
        Some(found) => Ok((found + SPARE).min(vmm::net::MAX_SLOTS)),
        None => Err(NetworkError::Refused {
            name: format!("number {found}"),
            reason: format!("a machine has at most {} network devices", vmm::net::MAX_SLOTS),
        }),
    }
}

/// Attaches every interface of `namespace` to the guest that is not attached yet: all or none.
pub(crate) fn attach(
    namespace: &Namespace,
    vmm: HostProcess,
    record: &NetworkRecord,
) -> Result<Vec<Attachment>, NetworkError> {
    let is_new = |link: &Link| record.interfaces.iter().all(|attached| attached.index != link.index);
    namespace.run(|| {
        let mut netlink = netlink()?;
        let mut attachments = Vec::new();
        for link in link::list(&mut netlink)?.into_iter().filter(is_new) {
            match attach_one(&mut netlink, &link, tag(vmm)) {
                Ok(one) => attachments.push(one),
                Err(error) => {
                    // The caller gets the first failure; another one while undoing adds nothing.
                    let _ = attachments
                        .iter()
                        .try_for_each(|one: &Attachment| detach_one(&mut netlink, &one.attached, vmm));
                    return Err(error);
                }
            }
        }
        Ok(attachments)
    })
}

/// Undoes [`attach`] for some interfaces.
pub(crate) fn detach(namespace: &Namespace, vmm: HostProcess, attached: &[Attached]) -> Result<(), NetworkError> {
    namespace.run(|| {
        let mut netlink = netlink()?;
        attached.iter().try_for_each(|attached| detach_one(&mut netlink, attached, vmm))
    })
}

fn detach_one(netlink: &mut Netlink, attached: &Attached, vmm: HostProcess) -> Result<(), NetworkError> {
    let removed = traffic::remove(netlink, attached.index, tag(vmm)).and_then(|()| link::remove(netlink, attached.tap));
    let step = "take back network interface";
    removed.map_err(|source| NetworkError::Interface { step, name: attached.interface.name.clone(), source })
}

/// Those of the interfaces in `record` that have left `namespace`.
pub(crate) fn removed(namespace: &Namespace, record: &NetworkRecord) -> Result<Vec<Attached>, NetworkError> {
    let there = namespace.run(|| link::indexes(&mut netlink()?))?;
    Ok(record.interfaces.iter().filter(|attached| !there.contains(&attached.index)).cloned().collect())
}

/// Those of the interfaces in `record` that are no longer what the guest's were made, as they are now.
pub(crate) fn changed(namespace: &Namespace, record: &NetworkRecord) -> Result<Vec<Attached>, NetworkError> {
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
                changed.push(Attached { interface, ..attached.clone() });
            }
        }
        Ok(changed)
    })
}

/// Sets the MTU of a changed interface on its tap.
pub(crate) fn adapt_tap(namespace: &Namespace, changed: &Attached) -> Result<(), NetworkError> {
    let (index, Interface { name, mtu, .. }) = (changed.tap, &changed.interface);
    namespace.run(|| {
        let step = "set the MTU of the tap of network interface";
        let set = link::set_mtu(&mut netlink()?, index, *mtu);
        set.map_err(|source| NetworkError::Interface { step, name: name.clone(), source })
    })
}

/// By this number the redirections of one sandbox are told from another's.
fn tag(vmm: HostProcess) -> u32 {
    vmm.pid.cast_unsigned()
}

fn attach_one(netlink: &mut Netlink, link: &Link, tag: u32) -> Result<Attachment, NetworkError> {
    let interface = interface::read(netlink, link)?;
    let device = tap::open().map_err(link.failed("open /dev/net/tun for network interface"))?;
    let tap = tap::Tap::make(device).map_err(link.failed("make a tap for network interface"))?;
    link::prepare_tap(netlink, &tap, link)?;
    traffic::tie(netlink, link, tap.index, tag)?;
    Ok(Attachment { attached: Attached { index: link.index, tap: tap.index, interface }, tap: tap.fd })
}

/// Removes the redirections of all interfaces of `namespace`, for one that outlives the sandbox. They are found in the kernel, so
/// that it does not matter whether they were recorded.
pub(crate) fn detach_all(namespace: &Namespace, vmm: HostProcess) -> Result<(), NetworkError> {
    namespace.run(move || {
        let mut netlink = netlink()?;
        link::indexes(&mut netlink)?.into_iter().try_for_each(|index| {
            let removed = traffic::remove(&mut netlink, index, tag(vmm));
            removed.map_err(|source| NetworkError::Netlink { step: "remove the redirection of an interface", source })
        })
    })
}

fn netlink() -> Result<Netlink, NetworkError> {
    Netlink::open().map_err(|source| NetworkError::Netlink { step: "open a netlink socket", source })
}
