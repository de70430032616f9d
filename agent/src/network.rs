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

impl Interface {
    /// This interface with only those of its addresses, routes and neighbours that `other` has not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.addresses.retain(|address| !other.addresses.contains(address));
        rest.routes.retain(|route| !other.routes.iter().any(|other| route.is_same(other)));
        rest.neighbours.retain(|neighbour| !other.neighbours.contains(neighbour));
        rest
    }

    /// Whether it has to be changed to become `other`.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        (self.hardware, self.mtu) != (other.hardware, other.mtu)
            || !self.without(other).is_bare()
            || !other.without(self).is_bare()
    }

    const fn is_bare(&self) -> bool {
        self.addresses.is_empty() && self.routes.is_empty() && self.neighbours.is_empty()
    }
}

/// A change of a container's interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct InterfaceChange {
    /// The interface as it is to be. Its name does not change.
    pub interface: Interface,
    /// The interface with only those addresses, routes and neighbours that it is to lose.
    pub lost: Interface,
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

impl Route {
    /// Whether it is `other`, however long either still has.
    fn is_same(&self, other: &Self) -> bool {
        let forever = |route: &Self| Self { expires: None, ..route.clone() };
        forever(self) == forever(other)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Address {
        let address = IpAddr::from([10, 0, 0, last]);
        Address { address, prefix: 24, peer: None, broadcast: None, scope: 0, no_prefix_route: false }
    }

    fn interface(addresses: Vec<Address>, routes: Vec<Route>) -> Interface {
        Interface {
            name: "eth0".to_owned(),
            hardware: [2; 6],
            mtu: 1500,
            ipv6: true,
            addresses,
            routes,
            neighbours: Vec::new(),
        }
    }

    fn route(last: u8, expires: Option<u32>) -> Route {
        Route {
            destination: [10, 1, 0, last].into(),
            prefix: 32,
            gateway: None,
            source: None,
            metric: None,
            metrics: Vec::new(),
            kind: 1,
            tos: 0,
            scope: 0,
            table: 254,
            protocol: 3,
            preference: None,
            expires,
            on_link: false,
        }
    }

    #[test]
    fn what_two_interfaces_differ_by_is_told() {
        let old = interface(vec![address(1), address(2)], vec![route(1, None)]);
        let new = interface(vec![address(2), address(3)], vec![route(1, None), route(2, None)]);
        assert_eq!(new.without(&old), interface(vec![address(3)], vec![route(2, None)]));
        assert_eq!(old.without(&new), interface(vec![address(1)], Vec::new()));
        assert!(new.differs(&old) && !new.differs(&new));
        assert!(new.differs(&Interface { mtu: 1400, ..new.clone() }));
    }

    #[test]
    fn a_route_whose_time_runs_is_the_same_route() {
        let [old, new] = [Some(60), Some(59)].map(|left| interface(Vec::new(), vec![route(1, left)]));
        assert!(!new.differs(&old));
    }
}
