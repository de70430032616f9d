//! Requests of rtnetlink(7) as bytes: addresses, routes, neighbours.

use std::net::IpAddr;

use agent::{Address, Neighbour, Route, RouteMetric};
use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressFlags, AddressHeader};
use netlink_packet_route::neighbour::{NeighbourHeader, NeighbourState};
use netlink_packet_route::route::{RouteFlags, RouteHeader};

/// `RTA_PREF` and `RTA_EXPIRES` of the kernel's `linux/rtnetlink.h`, which the C library does not define.
const RTA_PREF: u16 = 20;

const RTA_EXPIRES: u16 = 23;

/// `RTAX_CC_ALGO` of the kernel's `linux/rtnetlink.h`: a route's congestion control.
const RTAX_CC_ALGO: u16 = 16;

/// A header and untyped attributes. The typed attributes of the crate would add code for every known attribute to the
/// agent.
pub(crate) struct Message<H> {
    pub(crate) header: H,
    pub(crate) attributes: Vec<DefaultNla>,
}

impl<H: Emitable> Emitable for Message<H> {
    fn buffer_len(&self) -> usize {
        self.header.buffer_len() + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(self.header.buffer_len());
        self.header.emit(header);
        self.attributes.as_slice().emit(attributes);
    }
}

/// An attribute of 32 bits.
pub(crate) fn number_attribute(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

/// An attribute with a NUL-terminated string.
pub(crate) fn text_attribute(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), &[0]].concat())
}

fn ip_attribute(kind: u16, address: IpAddr) -> DefaultNla {
    DefaultNla::new(kind, octets(address))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The message for an address of the interface with this index.
pub(crate) fn address(index: u32, address: &Address) -> Message<AddressHeader> {
    let header = AddressHeader {
        family: family_of(address.address),
        prefix_len: address.prefix,
        scope: address.scope.into(),
        index,
        ..AddressHeader::default()
    };
    // The host has already completed the detection of duplicate addresses.
    let mut flags = AddressFlags::Permanent | AddressFlags::Nodad;
    flags.set(AddressFlags::Noprefixroute, address.no_prefix_route);
    let mut attributes = vec![
        ip_attribute(libc::IFA_LOCAL, address.address),
        ip_attribute(libc::IFA_ADDRESS, address.peer.unwrap_or(address.address)),
        number_attribute(libc::IFA_FLAGS, flags.bits()),
    ];
    attributes.extend(address.broadcast.map(|broadcast| ip_attribute(libc::IFA_BROADCAST, broadcast.into())));
    Message { header, attributes }
}

/// The message for a route through the interface with this index.
pub(crate) fn route(index: u32, route: &Route) -> Message<RouteHeader> {
    let header = RouteHeader {
        address_family: family_of(route.destination),
        destination_prefix_length: route.prefix,
        // Table numbers that do not fit into the header are in an attribute only.
        table: u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: route.protocol.into(),
        scope: route.scope.into(),
        kind: route.kind.into(),
        tos: route.tos,
        flags: if route.on_link { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    let required = [number_attribute(libc::RTA_OIF, index), number_attribute(libc::RTA_TABLE, route.table)];
    let optional = [
        (route.prefix > 0).then(|| ip_attribute(libc::RTA_DST, route.destination)),
        route.gateway.map(|gateway| gateway_attribute(route, gateway)),
        route.source.map(|source| ip_attribute(libc::RTA_PREFSRC, source)),
        route.metric.map(|metric| number_attribute(libc::RTA_PRIORITY, metric)),
        (!route.metrics.is_empty()).then(|| metrics_attribute(&route.metrics)),
        route.preference.map(|preference| DefaultNla::new(RTA_PREF, vec![preference])),
        route.expires.map(|seconds| number_attribute(RTA_EXPIRES, seconds)),
    ];
    Message { header, attributes: required.into_iter().chain(optional.into_iter().flatten()).collect() }
}

/// A gateway of the other address family has another format, `struct rtvia`.
fn gateway_attribute(route: &Route, gateway: IpAddr) -> DefaultNla {
    if gateway.is_ipv4() == route.destination.is_ipv4() {
        return ip_attribute(libc::RTA_GATEWAY, gateway);
    }
    let family = u16::from(u8::from(family_of(gateway)));
    DefaultNla::new(libc::RTA_VIA, [&family.to_ne_bytes(), octets(gateway).as_slice()].concat())
}

/// Metrics are nested attributes.
fn metrics_attribute(metrics: &[RouteMetric]) -> DefaultNla {
    let metrics: Vec<_> = metrics.iter().map(|metric| DefaultNla::new(metric.kind, metric.value.clone())).collect();
    let mut value = vec![0; metrics.as_slice().buffer_len()];
    metrics.as_slice().emit(&mut value);
    DefaultNla::new(libc::RTA_METRICS, value)
}

/// The message for a neighbour of the interface with this index.
pub(crate) fn neighbour(index: u32, neighbour: &Neighbour) -> Message<NeighbourHeader> {
    let header = NeighbourHeader {
        family: family_of(neighbour.address),
        ifindex: index,
        state: NeighbourState::Permanent,
        ..NeighbourHeader::default()
    };
    let hardware = DefaultNla::new(libc::NDA_LLADDR, neighbour.hardware.to_vec());
    Message { header, attributes: vec![ip_attribute(libc::NDA_DST, neighbour.address), hardware] }
}

/// The name of a route in error messages. It contains the congestion control, because a guest's kernel may lack that.
pub(crate) fn describe_route(route: &Route) -> String {
    let name = format!("route to {}/{}", route.destination, route.prefix);
    match route.metrics.iter().find(|metric| metric.kind == RTAX_CC_ALGO) {
        Some(metric) => {
            format!("{name} with congestion control {}", String::from_utf8_lossy(&metric.value).trim_end_matches('\0'))
        }
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Parseable;
    use netlink_packet_route::address::{AddressAttribute, AddressMessage};
    use netlink_packet_route::route::{
        RouteAddress, RouteAttribute, RouteMessage, RouteMetric as ParsedMetric, RoutePreference, RouteVia,
    };

    use super::*;

    fn bytes(message: &impl Emitable) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn route(destination: &str, prefix: u8, gateway: &str) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            prefix,
            gateway: Some(gateway.parse().unwrap()),
            source: None,
            metric: None,
            metrics: Vec::new(),
            kind: 1,
            tos: 0,
            scope: 0,
            table: 254,
            protocol: 3,
            preference: None,
            expires: None,
            on_link: false,
        }
    }

    /// The attributes that a parser finds in the message.
    fn attributes(route: &Route) -> Vec<RouteAttribute> {
        let message = RouteMessage::parse(&bytes(&super::route(7, route))).unwrap();
        assert_eq!(message.header.destination_prefix_length, route.prefix);
        message.attributes
    }

    #[test]
    fn a_default_route_has_no_destination() {
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into()));
        let expected = [RouteAttribute::Oif(7), RouteAttribute::Table(254), gateway];
        assert_eq!(attributes(&route("0.0.0.0", 0, "10.0.0.1")), expected);
    }

    #[test]
    fn a_route_has_all_attributes_of_the_hosts_route() {
        let source = Some("10.0.0.2".parse().unwrap());
        let metrics = vec![
            RouteMetric { kind: 2, value: 1300_u32.to_ne_bytes().to_vec() },
            RouteMetric { kind: RTAX_CC_ALGO, value: b"bbr\0".to_vec() },
        ];
        let (preference, expires) = (Some(3), Some(9));
        let route = Route {
            source,
            metric: Some(77),
            metrics,
            table: 1000,
            preference,
            expires,
            ..route("192.0.2.0", 24, "fe80::1")
        };
        assert_eq!(describe_route(&route), "route to 192.0.2.0/24 with congestion control bbr");
        let found = attributes(&route);
        for expected in [
            RouteAttribute::Destination(RouteAddress::Inet([192, 0, 2, 0].into())),
            RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap())),
            RouteAttribute::PrefSource(RouteAddress::Inet([10, 0, 0, 2].into())),
            RouteAttribute::Priority(77),
            RouteAttribute::Metrics(vec![ParsedMetric::Mtu(1300), ParsedMetric::CcAlgo("bbr".into())]),
            RouteAttribute::Preference(RoutePreference::Low),
            RouteAttribute::Expires(9),
            RouteAttribute::Table(1000),
        ] {
            assert!(found.contains(&expected), "{expected:?} is not in {found:?}");
        }
    }

    #[test]
    fn an_address_is_added_without_duplicate_detection() {
        let own: IpAddr = "fd00::1".parse().unwrap();
        let address =
            Address { address: own, prefix: 64, peer: None, broadcast: None, scope: 0, no_prefix_route: true };
        let message = AddressMessage::parse(&bytes(&super::address(7, &address))).unwrap();
        assert_eq!((message.header.index, message.header.prefix_len), (7, 64));
        let flags = AddressFlags::Permanent | AddressFlags::Nodad | AddressFlags::Noprefixroute;
        let expected = [AddressAttribute::Local(own), AddressAttribute::Address(own), AddressAttribute::Flags(flags)];
        assert_eq!(message.attributes, expected);
    }
}
