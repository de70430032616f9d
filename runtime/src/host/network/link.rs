//! The interfaces of a network namespace.

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
    /// Returns a closure for `map_err` that names the failed step and this interface.
    pub(super) fn failed(&self, step: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
        let name = self.name.clone();
        move |source| NetworkError::Interface { step, name, source }
    }
}

/// Lists the interfaces that are up, except the loopback interface and taps of this runtime, in the order of their indexes.
/// Interfaces that the kernel creates in every namespace, such as `tunl0`, are down and not attached.
pub(super) fn list(netlink: &mut Netlink) -> Result<Vec<Link>, NetworkError> {
    let messages = messages(netlink)?;
    let mut links =
        messages.iter().filter(|message| is_attachable(message)).map(link).collect::<Result<Vec<_>, _>>()?;
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// Lists the indexes of all interfaces of any kind.
pub(super) fn indexes(netlink: &mut Netlink) -> Result<Vec<u32>, NetworkError> {
    Ok(messages(netlink)?.iter().map(|message| message.header.index).collect())
}

fn messages(netlink: &mut Netlink) -> Result<Vec<LinkMessage>, NetworkError> {
    let failed = |source| NetworkError::Netlink { step: "list network interfaces", source };
    let listed = netlink.list(libc::RTM_GETLINK, &LinkMessage::default()).map_err(failed)?;
    listed.iter().map(|body| LinkMessage::parse(body).map_err(|error| failed(io::Error::other(error)))).collect()
}

fn is_attachable(message: &LinkMessage) -> bool {
    let flags = message.header.flags;
    let is_our_tap = is_tun(message) && name(message).starts_with(PREFIX);
    flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) && !is_our_tap
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
        return Err(refused("is refused: it is not an Ethernet interface, as the guest's interfaces are"));
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

/// Gives a tap the MTU of `link`, disables IPv6 on it for the namespace's own stack, and brings it up.
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

/// Sets the MTU of an interface, in bytes.
pub(super) fn set_mtu(netlink: &mut Netlink, index: u32, mtu: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu)];
    netlink.change(libc::RTM_SETLINK, &message, 0)
}

/// Removes an interface. One that does not exist any more is no error.
pub(super) fn remove(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    match netlink.change(libc::RTM_DELLINK, &message, 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        removed => removed,
    }
}

/// Whether IPv6 is enabled on an interface. Without the file, the kernel has no IPv6.
pub(super) fn has_ipv6(name: &str) -> bool {
    fs::read_to_string(ipv6_switch(name)).is_ok_and(|disabled| disabled.trim() == "0")
}

/// Returns the path of the switch. The kernel shows the files of the reader's network namespace.
fn ipv6_switch(name: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
}
