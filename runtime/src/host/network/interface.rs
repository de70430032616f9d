//! Reads the settings of an interface: its addresses, routes and neighbours. The guest's interface gets the same.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent::netlink::Netlink;
use agent::{Address, HardwareAddress, Interface, Neighbour, Route, RouteMetric};
use netlink_packet_core::{DecodeError, Nla, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType, RouteVia,
};
use nix::libc;

use super::error::NetworkError;
use super::link::{Link, has_ipv6};

/// Units per second of a route's remaining lifetime (`USER_HZ`).
const TICKS: u32 = 100;

/// Reads the settings of an interface.
pub(super) fn read(netlink: &mut Netlink, link: &Link) -> Result<Interface, NetworkError> {
    Ok(Interface {
        name: link.name.clone(),
        hardware: link.hardware,
        mtu: link.mtu,
        ipv6: has_ipv6(&link.name),
        addresses: addresses(netlink, link)?,
        routes: routes(netlink, link)?,
        neighbours: neighbours(netlink, link)?,
    })
}

/// Parses the messages of a netlink dump.
fn parse_all<T>(
    listed: io::Result<Vec<Vec<u8>>>,
    parse: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> io::Result<Vec<T>> {
    listed?.iter().map(|body| parse(body).map_err(io::Error::other)).collect()
}

fn addresses(netlink: &mut Netlink, link: &Link) -> Result<Vec<Address>, NetworkError> {
    let listed = netlink.list(libc::RTM_GETADDR, &AddressMessage::default());
    let messages =
        parse_all(listed, AddressMessage::parse).map_err(link.failed("read the addresses of network interface"))?;
    Ok(messages.iter().filter(|message| message.header.index == link.index).filter_map(address).collect())
}

/// Converts an address. Returns `None` for one that comes from an IPv6 router's advertisement: the guest gets its own from the
/// router.
fn address(message: &AddressMessage) -> Option<Address> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut address, mut local, mut broadcast) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(found) => address = Some(*found),
            AddressAttribute::Local(found) => local = Some(*found),
            AddressAttribute::Broadcast(found) => broadcast = Some(*found),
            AddressAttribute::Flags(found) => flags = *found,
            _ => {}
        }
    }
    let interface_address = local.or(address)?;
    if interface_address.is_ipv6() && !flags.contains(AddressFlags::Permanent) {
        return None;
    }
    Some(Address {
        address: interface_address,
        prefix: message.header.prefix_len,
        peer: address.filter(|peer| *peer != interface_address),
        broadcast,
        scope: message.header.scope.into(),
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
    })
}

fn routes(netlink: &mut Netlink, link: &Link) -> Result<Vec<Route>, NetworkError> {
    let listed = netlink.list(libc::RTM_GETROUTE, &RouteMessage::default());
    let messages =
        parse_all(listed, RouteMessage::parse).map_err(link.failed("read the routes of network interface"))?;
    let mut routes = Vec::new();
    for message in messages.iter().filter(|message| is_configured_on(message, link.index)) {
        routes.push(route(message).map_err(|reason| NetworkError::Refused { name: link.name.clone(), reason })?);
    }
    // The route to a gateway has to exist before a route through the gateway.
    routes.sort_by_key(|route| route.gateway.is_some());
    Ok(routes)
}

/// Whether a route goes through the interface `index` and was configured: not made by the kernel for an address, and not learned from
/// a router.
fn is_configured_on(message: &RouteMessage, index: u32) -> bool {
    let RouteHeader { protocol, kind, .. } = message.header;
    let is_configured = !matches!(protocol, RouteProtocol::Kernel | RouteProtocol::Ra | RouteProtocol::IcmpRedirect);
    let has_interface = matches!(
        kind,
        RouteType::Unicast | RouteType::Local | RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast
    );
    is_configured
        && has_interface
        && message.attributes.iter().any(|attribute| match attribute {
            RouteAttribute::Oif(found) => *found == index,
            RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == index),
            _ => false,
        })
}

fn table(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or_else(|| message.header.table.into())
}

fn route(message: &RouteMessage) -> Result<Route, String> {
    let mut route = from_header(message);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = Some(ip(address)?),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => route.source = Some(ip(address)?),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Metrics(metrics) => route.metrics = metrics.iter().map(metric).collect(),
            RouteAttribute::Preference(preference) => route.preference = Some((*preference).into()),
            RouteAttribute::CacheInfo(info) if info.expires > 0 => route.expires = Some(info.expires.div_ceil(TICKS)),
            RouteAttribute::MultiPath(_) => return Err(unsupported(&route, "has several next hops")),
            RouteAttribute::Encap(_) => return Err(unsupported(&route, "is encapsulated")),
            RouteAttribute::Source(_) => return Err(unsupported(&route, "is for some sources only")),
            RouteAttribute::Realm(_) => return Err(unsupported(&route, "has a realm")),
            _ => {}
        }
    }
    Ok(route)
}

/// Makes a route from the header of its message, without its attributes.
fn from_header(message: &RouteMessage) -> Route {
    let RouteHeader { address_family, destination_prefix_length: prefix, flags, .. } = message.header;
    let any: IpAddr = match address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    Route {
        destination: any,
        prefix,
        gateway: None,
        source: None,
        metric: None,
        metrics: Vec::new(),
        kind: message.header.kind.into(),
        tos: message.header.tos,
        scope: message.header.scope.into(),
        table: table(message),
        protocol: message.header.protocol.into(),
        preference: None,
        expires: None,
        on_link: flags.contains(RouteFlags::Onlink),
    }
}

fn metric(metric: &impl Nla) -> RouteMetric {
    let mut value = vec![0; metric.value_len()];
    metric.emit_value(&mut value);
    RouteMetric { kind: metric.kind(), value }
}

fn unsupported(route: &Route, what: impl Display) -> String {
    format!("its route to {}/{} {what}, which is not supported", route.destination, route.prefix)
}

fn ip(address: &RouteAddress) -> Result<IpAddr, String> {
    match address {
        RouteAddress::Inet(address) => Ok((*address).into()),
        RouteAddress::Inet6(address) => Ok((*address).into()),
        other => Err(format!("it has a route of an unknown kind ({other:?})")),
    }
}

fn neighbours(netlink: &mut Netlink, link: &Link) -> Result<Vec<Neighbour>, NetworkError> {
    let listed = netlink.list(libc::RTM_GETNEIGH, &NeighbourMessage::default());
    let messages =
        parse_all(listed, NeighbourMessage::parse).map_err(link.failed("read the neighbours of network interface"))?;
    let of_link = messages.iter().filter(|message| message.header.ifindex == link.index);
    Ok(of_link.filter(|message| message.header.state == NeighbourState::Permanent).filter_map(neighbour).collect())
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::from(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    let hardware = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(address) => HardwareAddress::try_from(address.as_slice()).ok(),
        _ => None,
    });
    Some(Neighbour { address: address?, hardware: hardware? })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::{RouteCacheInfo, RouteMetric, RouteNextHop, RoutePreference};

    use super::*;

    const LINK: u32 = 7;

    fn message(protocol: RouteProtocol, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        (message.header.table, message.header.kind) = (RouteHeader::RT_TABLE_MAIN, RouteType::Unicast);
        message.header.protocol = protocol;
        message.attributes = attributes;
        message
    }

    fn gateway() -> RouteAttribute {
        RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1)))
    }

    #[test]
    fn a_default_route_has_an_unspecified_destination() {
        let message = message(RouteProtocol::Boot, vec![RouteAttribute::Oif(LINK), gateway()]);
        assert!(is_configured_on(&message, LINK) && !is_configured_on(&message, LINK + 1));
        let route = route(&message).unwrap();
        assert_eq!((route.destination.to_string().as_str(), route.prefix, route.table), ("0.0.0.0", 0, 254));
        assert_eq!(route.gateway, Some([10, 0, 0, 1].into()));
    }

    #[test]
    fn routes_of_the_kernel_and_of_routers_are_not_copied() {
        for protocol in [RouteProtocol::Kernel, RouteProtocol::Ra] {
            assert!(!is_configured_on(&message(protocol, vec![RouteAttribute::Oif(LINK)]), LINK));
        }
        let mut black_hole = message(RouteProtocol::Static, vec![RouteAttribute::Oif(LINK)]);
        black_hole.header.kind = RouteType::BlackHole;
        assert!(!is_configured_on(&black_hole, LINK));
    }

    #[test]
    fn a_routes_metrics_and_attributes_are_copied() {
        let metrics = vec![RouteMetric::Lock(4), RouteMetric::Mtu(1200), RouteMetric::CcAlgo("bbr".into())];
        let mut info = [0; 32];
        info[8..12].copy_from_slice(&4201_u32.to_ne_bytes());
        let info = RouteCacheInfo::parse(&info).unwrap();
        let mut message = message(
            RouteProtocol::Static,
            vec![
                RouteAttribute::Metrics(metrics),
                RouteAttribute::Preference(RoutePreference::High),
                RouteAttribute::CacheInfo(info),
            ],
        );
        (message.header.kind, message.header.tos) = (RouteType::Local, 0x10);
        let route = route(&message).unwrap();
        let copied: Vec<_> = route.metrics.iter().map(|metric| (metric.kind, metric.value.clone())).collect();
        let number = |number: u32| number.to_ne_bytes().to_vec();
        assert_eq!(copied, [(1, number(4)), (2, number(1200)), (16, b"bbr\0".to_vec())]);
        assert_eq!((route.kind, route.tos, route.preference, route.expires), (2, 0x10, Some(1), Some(43)));
    }

    #[test]
    fn a_multipath_or_source_route_is_refused_with_its_destination() {
        let mut hop = RouteNextHop::default();
        hop.interface_index = LINK;
        let message = message(RouteProtocol::Static, vec![RouteAttribute::MultiPath(vec![hop])]);
        assert!(is_configured_on(&message, LINK));
        assert_eq!(
            route(&message).unwrap_err(),
            "its route to 0.0.0.0/0 has several next hops, which is not supported"
        );
        let source = RouteAttribute::Source(RouteAddress::Inet6(Ipv6Addr::LOCALHOST));
        let error = route(&self::message(RouteProtocol::Static, vec![source])).unwrap_err();
        assert!(error.contains("is for some sources only"), "{error}");
    }

    #[test]
    fn an_address_has_a_peer_only_if_it_differs() {
        let [own, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let mut message = AddressMessage::default();
        message.attributes = vec![AddressAttribute::Address(own), AddressAttribute::Local(own)];
        assert_eq!(address(&message).unwrap().peer, None);
        message.attributes[0] = AddressAttribute::Address(other);
        assert_eq!(address(&message).map(|found| (found.address, found.peer)), Some((own, Some(other))));
    }

    #[test]
    fn an_address_from_an_ipv6_router_is_not_copied() {
        let mut message = AddressMessage::default();
        message.attributes = vec![AddressAttribute::Address(Ipv6Addr::LOCALHOST.into())];
        assert_eq!(address(&message), None);
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Permanent));
        assert!(address(&message).is_some());
    }
}
