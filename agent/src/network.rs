//! Network interfaces, as the host has them and the guest is to have them.
//!
//! Numbers that only the kernel gives a meaning (scopes, tables, protocols) are those of rtnetlink(7), on both sides of
//! the wire.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// A hardware address of an Ethernet interface.
pub type HardwareAddress = [u8; 6];

/// Address that the network device in a slot has until the guest gives it the interface's: locally administered.
#[must_use]
pub const fn slot_address(slot: u8) -> HardwareAddress {
    [0x02, b'v', b'm', b'r', b't', slot]
}

/// An interface of a container.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Interface {
    /// Its name, as `eth0`.
    pub name: String,
    /// Its hardware address.
    pub hardware: HardwareAddress,
    /// The longest packet it sends, in bytes.
    pub mtu: u32,
    /// Whether it speaks IPv6 at all.
    pub ipv6: bool,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Routes that lead through it, besides those that come with its addresses; in an order in which they can be made.
    pub routes: Vec<Route>,
    /// Neighbours that are known for good.
    pub neighbours: Vec<Neighbour>,
}

/// An interface and the network device of the machine that it becomes in the guest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AttachedInterface {
    /// Number of the device, which has [`slot_address`].
    pub slot: u8,
    /// The interface.
    pub interface: Interface,
}

/// An address of an interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Bits of it that name the network.
    pub prefix: u8,
    /// The other end, where the interface leads to one host only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// The address of all hosts of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<Ipv4Addr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Whether the network's hosts are reached through a route of their own and not by this address
    /// (`IFA_F_NOPREFIXROUTE`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_prefix_route: bool,
}

/// A route through an interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Route {
    /// What it leads to; a network of no bits is the default route.
    pub destination: IpAddr,
    /// Bits of `destination` that name the network.
    pub prefix: u8,
    /// The next host on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The own address to send from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Its priority: the lowest wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// What it says of the packets on this way, as the longest, and of the connections.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<RouteMetric>,
    /// `RTN_*`: a route to others, to the machine itself, to all in a network or to some.
    pub kind: u8,
    /// The type of service of the packets that go this way; 0 is any.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tos: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Routing table.
    pub table: u32,
    /// `RTPROT_*`.
    pub protocol: u8,
    /// `ICMPV6_ROUTER_PREF_*`, which decides between routers of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<u8>,
    /// Seconds after which it goes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u32>,
    /// Whether the gateway is reached through this interface whatever its addresses are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_link: bool,
}

fn is_zero(number: &u8) -> bool {
    *number == 0
}

/// One of a route's metrics.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RouteMetric {
    /// `RTAX_*`.
    pub kind: u16,
    /// Its value in the kernel's own form: a number, or a name that ends with a zero.
    pub value: Vec<u8>,
}

/// A host whose hardware address is known.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub hardware: HardwareAddress,
}
