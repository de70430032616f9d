//! Network devices, by rtnetlink(7): finding, renaming and changing them.

use std::io;

use agent::netlink::Netlink;
use agent::slot_address;
use netlink_packet_core::{DefaultNla, NlaBuffer, NlasIterator};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use rustix::io::Errno;

use super::messages::{self, Message};
use crate::error::Error;

/// For `map_err`: names the step in which a request failed.
pub(crate) fn io_error(step: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    |error| Error::at(step)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Moves the device in `slot` into the network namespace of `pid` and names it `name`. The device is found by its
/// permanent address: after use by another container its current address may be that container's.
pub(crate) fn move_to_namespace(netlink: &mut Netlink, slot: u8, name: &str, pid: i32) -> io::Result<()> {
    let index = find(netlink, libc::IFLA_PERM_ADDRESS, &slot_address(slot))?;
    let attributes = vec![
        messages::text_attribute(libc::IFLA_IFNAME, name),
        messages::number_attribute(libc::IFLA_NET_NS_PID, pid.cast_unsigned()),
    ];
    change(netlink, index, attributes, LinkFlags::empty())
}

/// Index of the interface with an attribute of this value.
fn find(netlink: &mut Netlink, kind: u16, value: &[u8]) -> io::Result<u32> {
    /// Length of a link's header, `struct ifinfomsg`.
    const HEADER: usize = 16;
    let links = netlink.list(libc::RTM_GETLINK, &LinkHeader::default())?;
    let has = |attribute: NlaBuffer<&[u8]>| attribute.kind() == kind && attribute.value() == value;
    let matches = |link: &&Vec<u8>| NlasIterator::new(link.get(HEADER..).unwrap_or_default()).flatten().any(has);
    let link = links.iter().find(matches).ok_or(Errno::NODEV)?;
    LinkHeader::parse(link).map(|header| header.index).map_err(io::Error::other)
}

/// Index of the interface with this name.
pub(crate) fn find_named(netlink: &mut Netlink, name: &str) -> Result<u32, Error> {
    let found = find(netlink, libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    found.map_err(io_error(format!("find network interface {name}")))
}

/// Sets attributes and flags of the interface with this index.
pub(crate) fn change(
    netlink: &mut Netlink,
    index: u32,
    attributes: Vec<DefaultNla>,
    flags: LinkFlags,
) -> io::Result<()> {
    let header = LinkHeader { index, flags, change_mask: flags, ..LinkHeader::default() };
    netlink.change(libc::RTM_SETLINK, &Message { header, attributes }, 0)
}
