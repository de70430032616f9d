//! Network interfaces of the host, which the guest copies.
//!
//! Numbers that only the kernel interprets (scopes, tables, protocols) are those of rtnetlink(7).

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// A hardware address of an Ethernet interface.
pub type HardwareAddress = [u8; 6];

/// Address of the network device in a slot until the guest assigns the interface's address: locally administered.
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
    /// Maximum packet size in bytes.
    pub mtu: u32,
    /// Whether IPv6 is enabled.
    pub ipv6: bool,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Routes through it, in a possible order of creation. Routes that the kernel adds with its addresses are left out.
    pub routes: Vec<Route>,
    /// Permanent neighbour entries.
    pub neighbours: Vec<Neighbour>,
}

impl Interface {
    /// This interface without the addresses, routes and neighbours of `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.addresses.retain(|address| !other.addresses.contains(address));
        rest.routes.retain(|route| !other.routes.iter().any(|other| route.is_same(other)));
        rest.neighbours.retain(|neighbour| !other.neighbours.contains(neighbour));
        rest
    }

    /// Whether a change is needed to turn it into `other`.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        (self.hardware, self.mtu) != (other.hardware, other.mtu)
            || !self.without(other).is_empty()
            || !other.without(self).is_empty()
    }

    const fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.routes.is_empty() && self.neighbours.is_empty()
    }
}

/// A change of a container's interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct InterfaceChange {
    /// The new state of the interface. Its name does not change.
    pub interface: Interface,
    /// The interface with only those addresses, routes and neighbours that are removed.
    pub removed: Interface,
}

/// An interface, and the network device of the machine that represents it in the guest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AttachedInterface {
    /// Slot of the device, which has the address [`slot_address`].
    pub slot: u8,
    /// The interface.
    pub interface: Interface,
}

/// An address of an interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Prefix length of the network.
    pub prefix: u8,
    /// The other end of a point-to-point interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// The broadcast address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<Ipv4Addr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Whether the kernel adds no route to the network of this address (`IFA_F_NOPREFIXROUTE`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_prefix_route: bool,
}

/// A route through an interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Route {
    /// The destination. With a prefix of length 0 it is the default route.
    pub destination: IpAddr,
    /// Prefix length of `destination`.
    pub prefix: u8,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The preferred source address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Its priority; the lowest one wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// Properties of its packets and connections, such as the maximum packet size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<RouteMetric>,
    /// `RTN_*`: unicast, local, broadcast, multicast and so on.
    pub kind: u8,
    /// The type of service that packets must have; 0 matches every packet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tos: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Routing table.
    pub table: u32,
    /// `RTPROT_*`.
    pub protocol: u8,
    /// `ICMPV6_ROUTER_PREF_*`: the preference between IPv6 routers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<u8>,
    /// Seconds until the kernel removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u32>,
    /// Whether the gateway is on the link even if no address of the interface covers it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_link: bool,
}

impl Route {
    /// Whether both are the same route, ignoring the time until they expire.
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
    /// Its value in the kernel's format: a number, or a name with a terminating NUL.
    pub value: Vec<u8>,
}

/// A permanent neighbour entry.
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
    fn the_difference_of_two_interfaces_is_found() {
        let old = interface(vec![address(1), address(2)], vec![route(1, None)]);
        let new = interface(vec![address(2), address(3)], vec![route(1, None), route(2, None)]);
        assert_eq!(new.without(&old), interface(vec![address(3)], vec![route(2, None)]));
        assert_eq!(old.without(&new), interface(vec![address(1)], Vec::new()));
        assert!(new.differs(&old) && !new.differs(&new));
        assert!(new.differs(&Interface { mtu: 1400, ..new.clone() }));
    }

    #[test]
    fn routes_with_different_expiry_times_are_the_same_route() {
        let [old, new] = [Some(60), Some(59)].map(|left| interface(Vec::new(), vec![route(1, left)]));
        assert!(!new.differs(&old));
    }
}
