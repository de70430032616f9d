//! Which interfaces a namespace has.

use std::fs;
use std::io;

use agent::HardwareAddress;
use agent::netlink::Netlink;
use netlink_packet_core::Parseable;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use nix::libc;

use super::error::NetworkError;
use super::tap::{PREFIX, Tap};

/// An interface that can be attached to a guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) hardware: HardwareAddress,
    pub(super) mtu: u32,
}

impl Link {
    /// For `map_err`: what was done to it.
    pub(super) fn failed(&self, step: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
        let name = self.name.clone();
        move |source| NetworkError::Interface { step, name, source }
    }
}

/// The interfaces that are up, besides the loopback and taps of this runtime, in the order of their indexes. What the
/// kernel puts into every namespace, such as `tunl0`, is down and not the guest's.
pub(super) fn list(netlink: &mut Netlink) -> Result<Vec<Link>, NetworkError> {
    let messages = messages(netlink)?;
    let mut links = messages.iter().filter_map(candidate).map(link).collect::<Result<Vec<_>, _>>()?;
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// The indexes of all interfaces, whatever they are.
pub(super) fn indexes(netlink: &mut Netlink) -> Result<Vec<u32>, NetworkError> {
    Ok(messages(netlink)?.iter().map(|message| message.header.index).collect())
}

fn messages(netlink: &mut Netlink) -> Result<Vec<LinkMessage>, NetworkError> {
    let failed = |source| NetworkError::Netlink { step: "list network interfaces", source };
    let listed = netlink.list(libc::RTM_GETLINK, &LinkMessage::default()).map_err(failed)?;
    listed.iter().map(|body| LinkMessage::parse(body).map_err(|error| failed(io::Error::other(error)))).collect()
}

fn candidate(message: &LinkMessage) -> Option<&LinkMessage> {
    let flags = message.header.flags;
    let is_own = is_tun(message) && name(message).starts_with(PREFIX);
    (flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) && !is_own).then_some(message)
}

fn is_tun(message: &LinkMessage) -> bool {
    let infos = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Tun)))
}

fn name(message: &LinkMessage) -> String {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn link(message: &LinkMessage) -> Result<Link, NetworkError> {
    let name = name(message);
    let refused = |reason: &str| NetworkError::Refused { name: name.clone(), reason: reason.to_owned() };
    if message.header.link_layer_type != LinkLayerType::Ether {
        return Err(refused("is refused: it is no Ethernet interface, and a guest's interfaces are"));
    }
    let hardware = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => HardwareAddress::try_from(address.as_slice()).ok(),
        _ => None,
    });
    let mtu = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Ok(Link {
        index: message.header.index,
        hardware: hardware.ok_or_else(|| refused("has no hardware address"))?,
        mtu: mtu.ok_or_else(|| refused("has no MTU"))?,
        name,
    })
}

/// Makes a tap fit for the frames of `link`, keeps the namespace's own IPv6 off it, and brings it up.
pub(super) fn prepare_tap(netlink: &mut Netlink, tap: &Tap, link: &Link) -> Result<(), NetworkError> {
    match fs::write(ipv6_switch(&tap.name), "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(link.failed("disable IPv6 on the tap of network interface")(error));
        }
        _ => {}
    }
    let mut message = LinkMessage::default();
    message.header.index = tap.index;
    (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    message.attributes = vec![LinkAttribute::Mtu(link.mtu)];
    let changed = netlink.change(libc::RTM_SETLINK, &message, 0);
    changed.map_err(link.failed("bring up the tap of network interface"))
}

/// Sets how long frames may be, in bytes.
pub(super) fn set_mtu(netlink: &mut Netlink, index: u32, mtu: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu)];
    netlink.change(libc::RTM_SETLINK, &message, 0)
}

/// Removes an interface that may be gone already.
pub(super) fn remove(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    match netlink.change(libc::RTM_DELLINK, &message, 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        removed => removed,
    }
}

/// Whether an interface speaks IPv6; one without the file belongs to a kernel without IPv6.
pub(super) fn has_ipv6(name: &str) -> bool {
    fs::read_to_string(ipv6_switch(name)).is_ok_and(|disabled| disabled.trim() == "0")
}

/// The kernel shows the files of the reader's own network namespace.
fn ipv6_switch(name: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
}
