//! The network of a sandbox: every interface of its network namespace, led into the guest.
//!
//! ```text
//!  the host's network │ the sandbox's namespace                     │ guest
//!    bridge ── veth ══╪══ eth0 ◄─ tc: all that comes in goes out ─► vmrt0 (tap) ═══ VMM ═══ eth0
//! ```
//!
//! An interface stays where the engine has put it, with its addresses. Whatever it receives is redirected to a tap
//! before the namespace's own stack sees it, and whatever the guest sends leaves through it; the guest's interface is
//! given the same name, addresses and routes. So no engine and no CNI plugin has to know of the guest.

mod interface;
mod link;
mod namespace;
mod record;
mod tap;
mod traffic;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::Interface;
use agent::netlink::Netlink;
use thiserror::Error;

use crate::host_process::HostProcess;
use link::Link;
pub(crate) use namespace::Namespace;
pub(crate) use record::{Led, NetworkRecord};

/// Devices of a machine whose namespace somebody may still fill: one for its interface, and one more.
const LATER: u8 = 2;

/// Devices besides those for the interfaces that are there already.
const SPARE: u8 = 1;

/// Why a sandbox has no network. Each names the interface.
#[derive(Debug, Error)]
pub(crate) enum NetworkError {
    #[error("open the network namespace of process {pid}")]
    Namespace { pid: i32, source: io::Error },
    #[error("enter the sandbox's network namespace")]
    Enter(#[source] io::Error),
    #[error("{step}")]
    Netlink { step: &'static str, source: io::Error },
    #[error("{step} {name}")]
    Interface { step: &'static str, name: String, source: io::Error },
    #[error("network interface {name}: {reason}")]
    Refused { name: String, reason: String },
}

/// An interface of the sandbox's namespace that is led into the guest. The tap ends with its last descriptor.
pub(crate) struct Connected {
    /// What is remembered of it.
    pub(crate) led: Led,
    /// What the VMM is to have.
    tap: OwnedFd,
}

impl Connected {
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

/// Leads every interface of `namespace` into the guest that is not yet: all or none.
pub(crate) fn connect(
    namespace: &Namespace,
    vmm: HostProcess,
    record: &NetworkRecord,
) -> Result<Vec<Connected>, NetworkError> {
    let is_new = |link: &Link| record.interfaces.iter().all(|led| led.index != link.index);
    namespace.run(|| {
        let mut netlink = netlink()?;
        let mut connected = Vec::new();
        for link in link::list(&mut netlink)?.into_iter().filter(is_new) {
            match connect_one(&mut netlink, &link, tag(vmm)) {
                Ok(one) => connected.push(one),
                Err(error) => {
                    // What fails is told; that this could not be undone would say nothing more.
                    let _ = connected.iter().try_for_each(|one: &Connected| release_one(&mut netlink, &one.led, vmm));
                    return Err(error);
                }
            }
        }
        Ok(connected)
    })
}

/// Takes back what [`connect`] did to some interfaces.
pub(crate) fn release(namespace: &Namespace, vmm: HostProcess, led: &[Led]) -> Result<(), NetworkError> {
    namespace.run(|| {
        let mut netlink = netlink()?;
        led.iter().try_for_each(|led| release_one(&mut netlink, led, vmm))
    })
}

fn release_one(netlink: &mut Netlink, led: &Led, vmm: HostProcess) -> Result<(), NetworkError> {
    let removed = traffic::remove(netlink, led.index, tag(vmm)).and_then(|()| link::remove(netlink, led.tap));
    let step = "take back network interface";
    removed.map_err(|source| NetworkError::Interface { step, name: led.interface.name.clone(), source })
}

/// Those of the interfaces in `record` that have left `namespace`.
pub(crate) fn gone(namespace: &Namespace, record: &NetworkRecord) -> Result<Vec<Led>, NetworkError> {
    let there = namespace.run(|| link::indexes(&mut netlink()?))?;
    Ok(record.interfaces.iter().filter(|led| !there.contains(&led.index)).cloned().collect())
}

/// Those of the interfaces in `record` that are no longer what the guest's were made, as they are now.
pub(crate) fn changed(namespace: &Namespace, record: &NetworkRecord) -> Result<Vec<Led>, NetworkError> {
    namespace.run(|| {
        let mut netlink = netlink()?;
        let mut changed = Vec::new();
        for link in link::list(&mut netlink)? {
            let Some(led) = record.interfaces.iter().find(|led| led.index == link.index) else { continue };
            // The guest's interface keeps its name.
            let name = led.interface.name.clone();
            let interface = Interface { name, ..interface::read(&mut netlink, &link)? };
            if led.interface.differs(&interface) {
                changed.push(Led { interface, ..led.clone() });
            }
        }
        Ok(changed)
    })
}

/// Makes the tap of a changed interface as fit for its frames as it was.
pub(crate) fn adapt_tap(namespace: &Namespace, changed: &Led) -> Result<(), NetworkError> {
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

fn connect_one(netlink: &mut Netlink, link: &Link, tag: u32) -> Result<Connected, NetworkError> {
    let interface = interface::read(netlink, link)?;
    let device = tap::open().map_err(link.failed("open /dev/net/tun for network interface"))?;
    let tap = tap::Tap::make(device).map_err(link.failed("make a tap for network interface"))?;
    link::prepare_tap(netlink, &tap, link)?;
    traffic::tie(netlink, link, tap.index, tag)?;
    Ok(Connected { led: Led { index: link.index, tap: tap.index, interface }, tap: tap.fd })
}

/// Takes back what [`connect`] did to all the interfaces of `namespace`, for one that outlives the sandbox. They are found by
/// their redirections, so that nobody has to have lived to write them down.
pub(crate) fn disconnect(namespace: &Namespace, vmm: HostProcess) -> Result<(), NetworkError> {
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
