//! Network interfaces of containers: devices of the machine, moved into a container's network namespace and made what
//! the host says they are.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use agent::netlink::Netlink;
use agent::{Address, AttachedInterface, Interface, InterfaceChange, Neighbour, Route, RouteMetric, slot_address};
use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlaBuffer, NlasIterator};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressFlags, AddressHeader};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use netlink_packet_route::neighbour::{NeighbourHeader, NeighbourState};
use netlink_packet_route::route::{RouteFlags, RouteHeader};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use crate::container::Guest;
use crate::error::Error;
use crate::machine;

/// `RTA_PREF` and `RTA_EXPIRES` of the kernel's `linux/rtnetlink.h`, which the C library does not name.
const RTA_PREF: u16 = 20;
const RTA_EXPIRES: u16 = 23;

/// `RTAX_CC_ALGO` of the kernel's `linux/rtnetlink.h`: a route's congestion control.
const RTAX_CC_ALGO: u16 = 16;

/// Gives interfaces to the container whose first process is `pid`, and `process` as a pidfd.
pub(crate) fn give(
    guest: Guest<'_>,
    (pid, process): (i32, BorrowedFd<'_>),
    interfaces: &[AttachedInterface],
) -> Result<(), Error> {
    if interfaces.is_empty() {
        return Ok(());
    }
    let mut guests = Netlink::open().map_err(at("open a netlink socket"))?;
    for AttachedInterface { slot, interface } in interfaces {
        let step = format!("move network interface {} into the container", interface.name);
        move_device(&mut guests, *slot, &interface.name, pid).map_err(at(step))?;
    }
    inside(guest, process, || {
        let mut netlink = Netlink::open().map_err(at("open a netlink socket"))?;
        set_up_all(guest, &mut netlink, interfaces.iter().map(|attached| &attached.interface))
    })
}

/// Changes interfaces of the container whose first process is `process`. What they lose is removed first: a route that
/// moves to another interface would otherwise count as there already.
pub(crate) fn change(guest: Guest<'_>, process: BorrowedFd<'_>, changes: &[InterfaceChange]) -> Result<(), Error> {
    inside(guest, process, || {
        let mut netlink = Netlink::open().map_err(at("open a netlink socket"))?;
        for InterfaceChange { interface, lost } in changes {
            let index = find_named(&mut netlink, &interface.name)?;
            take_away(&mut netlink, index, lost)?;
        }
        // Each interface is set up in whole: with an address, the kernel also removes the routes that depend on it.
        set_up_all(guest, &mut netlink, changes.iter().map(|change| &change.interface))
    })
}

fn take_away(netlink: &mut Netlink, index: u32, lost: &Interface) -> Result<(), Error> {
    let name = &lost.name;
    for route in &lost.routes {
        remove(netlink, libc::RTM_DELROUTE, &route_message(index, route))
            .map_err(|error| at(format!("remove {} from network interface {name}", described(route)))(error))?;
    }
    for neighbour in &lost.neighbours {
        let step = || format!("remove neighbour {} from network interface {name}", neighbour.address);
        let message = neighbour_message(index, neighbour);
        remove(netlink, libc::RTM_DELNEIGH, &message).map_err(|error| at(step())(error))?;
    }
    for address in &lost.addresses {
        let step = || format!("remove address {}/{} from network interface {name}", address.address, address.prefix);
        let message = address_message(index, address);
        remove(netlink, libc::RTM_DELADDR, &message).map_err(|error| at(step())(error))?;
    }
    Ok(())
}

/// Removes something that may be gone already: with something else, or because the container removed it.
fn remove(netlink: &mut Netlink, kind: u16, message: &impl Emitable) -> io::Result<()> {
    match netlink.change(kind, message, 0) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENOENT)) => Ok(()),
        result => result,
    }
}

/// Takes interface `name` away from the container whose first process is `process`: its device is the guest's own again.
pub(crate) fn take(guest: Guest<'_>, process: BorrowedFd<'_>, name: &str) -> Result<(), Error> {
    let step = || format!("take network interface {name} out of the container");
    let home = home(guest)?;
    inside(guest, process, || {
        let mut netlink = Netlink::open().map_err(at("open a netlink socket"))?;
        let index = find_named(&mut netlink, name)?;
        let home = DefaultNla::new(libc::IFLA_NET_NS_FD, home.as_raw_fd().to_ne_bytes().to_vec());
        // Its name may be that of a device there: the kernel finds a free one.
        let attributes = vec![text(libc::IFLA_IFNAME, "slot%d"), home];
        change_link(&mut netlink, index, attributes, LinkFlags::empty()).map_err(at(step()))
    })
}

/// Does something in the network namespace of `process`.
pub(crate) fn inside<T>(
    guest: Guest<'_>,
    process: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    // Not by the agent's own pidfd: that stands for the namespace it is in, whichever that is.
    let home = home(guest)?;
    rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::NETWORK)
        .map_err(Error::at("join the container's network namespace"))?;
    let result = work();
    rustix::thread::move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(Error::at("return to the guest's network namespace"))?;
    result
}

/// The network namespace of the guest itself, for who is there.
fn home(guest: Guest<'_>) -> Result<OwnedFd, Error> {
    rustix::fs::openat(guest.proc, "self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::at("open the guest's network namespace"))
}

fn at(step: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    |error| Error::at(step)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Moves the device in `slot`, wherever its name comes from, into the network namespace of `pid` and names it `name`.
/// A device that was another container's before still has that one's address, but its first one is not forgotten.
fn move_device(netlink: &mut Netlink, slot: u8, name: &str, pid: i32) -> io::Result<()> {
    let index = find(netlink, libc::IFLA_PERM_ADDRESS, &slot_address(slot))?;
    let attributes = vec![text(libc::IFLA_IFNAME, name), number(libc::IFLA_NET_NS_PID, pid.cast_unsigned())];
    change_link(netlink, index, attributes, LinkFlags::empty())
}

/// Index of the interface that has an attribute of this value.
fn find(netlink: &mut Netlink, kind: u16, value: &[u8]) -> io::Result<u32> {
    /// Length of a link's header, `struct ifinfomsg`.
    const HEADER: usize = 16;
    let links = netlink.list(libc::RTM_GETLINK, &LinkHeader::default())?;
    let has = |attribute: NlaBuffer<&[u8]>| attribute.kind() == kind && attribute.value() == value;
    let is_it = |link: &&Vec<u8>| NlasIterator::new(link.get(HEADER..).unwrap_or_default()).flatten().any(has);
    let link = links.iter().find(is_it).ok_or(Errno::NODEV)?;
    LinkHeader::parse(link).map(|header| header.index).map_err(io::Error::other)
}

/// Index of the interface of this name.
fn find_named(netlink: &mut Netlink, name: &str) -> Result<u32, Error> {
    let found = find(netlink, libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    found.map_err(at(format!("find network interface {name}")))
}

/// In the container's network namespace.
fn set_up_all<'a>(
    guest: Guest<'_>,
    netlink: &mut Netlink,
    interfaces: impl Iterator<Item = &'a Interface>,
) -> Result<(), Error> {
    for interface in interfaces {
        let index = find_named(netlink, &interface.name)?;
        set_up(guest, netlink, index, interface)?;
    }
    Ok(())
}

/// Addresses come before the interface is up, so that it does not look for itself on the network first; routes after.
fn set_up(guest: Guest<'_>, netlink: &mut Netlink, index: u32, interface: &Interface) -> Result<(), Error> {
    let name = &interface.name;
    if !interface.ipv6 {
        disable_ipv6(guest, name)?;
    }
    let attributes =
        vec![DefaultNla::new(libc::IFLA_ADDRESS, interface.hardware.to_vec()), number(libc::IFLA_MTU, interface.mtu)];
    change_link(netlink, index, attributes, LinkFlags::empty())
        .map_err(at(format!("set hardware address and MTU of network interface {name}")))?;
    for address in &interface.addresses {
        let step = || format!("add address {}/{} to network interface {name}", address.address, address.prefix);
        let message = address_message(index, address);
        netlink.change(libc::RTM_NEWADDR, &message, NLM_F_CREATE | NLM_F_REPLACE).map_err(|error| at(step())(error))?;
    }
    change_link(netlink, index, Vec::new(), LinkFlags::Up).map_err(at(format!("bring up network interface {name}")))?;
    for route in &interface.routes {
        add_route(netlink, index, route)
            .map_err(|error| at(format!("add {} through network interface {name}", described(route)))(error))?;
    }
    for neighbour in &interface.neighbours {
        let step = || format!("add neighbour {} to network interface {name}", neighbour.address);
        let message = neighbour_message(index, neighbour);
        netlink
            .change(libc::RTM_NEWNEIGH, &message, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|error| at(step())(error))?;
    }
    Ok(())
}

fn disable_ipv6(guest: Guest<'_>, name: &str) -> Result<(), Error> {
    // A name is one component: the kernel allows no slash in it.
    let file = format!("sys/net/ipv6/conf/{name}/disable_ipv6");
    machine::write_in(guest.proc, &file, b"1").map_err(Error::at(format!("disable IPv6 on network interface {name}")))
}

fn change_link(netlink: &mut Netlink, index: u32, attributes: Vec<DefaultNla>, flags: LinkFlags) -> io::Result<()> {
    let header = LinkHeader { index, flags, change_mask: flags, ..LinkHeader::default() };
    netlink.change(libc::RTM_SETLINK, &Message { header, attributes }, 0)
}

/// A header and attributes by their numbers: the crate's typed ones would bring every attribute there is into the agent.
struct Message<H> {
    header: H,
    attributes: Vec<DefaultNla>,
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

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn text(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), &[0]].concat())
}

fn ip(kind: u16, address: IpAddr) -> DefaultNla {
    DefaultNla::new(kind, octets(address))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(index: u32, address: &Address) -> Message<AddressHeader> {
    let header = AddressHeader {
        family: family(address.address),
        prefix_len: address.prefix,
        scope: address.scope.into(),
        index,
        ..AddressHeader::default()
    };
    // The host has found out already that nobody else has the address.
    let mut flags = AddressFlags::Permanent | AddressFlags::Nodad;
    flags.set(AddressFlags::Noprefixroute, address.no_prefix_route);
    let mut attributes = vec![
        ip(libc::IFA_LOCAL, address.address),
        ip(libc::IFA_ADDRESS, address.peer.unwrap_or(address.address)),
        number(libc::IFA_FLAGS, flags.bits()),
    ];
    attributes.extend(address.broadcast.map(|broadcast| ip(libc::IFA_BROADCAST, broadcast.into())));
    Message { header, attributes }
}

/// A route that came by itself with an address is as well there.
fn add_route(netlink: &mut Netlink, index: u32, route: &Route) -> io::Result<()> {
    match netlink.change(libc::RTM_NEWROUTE, &route_message(index, route), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// A route as messages name it, with its congestion control: that is the one thing a guest's kernel may not have.
fn described(route: &Route) -> String {
    let name = format!("route to {}/{}", route.destination, route.prefix);
    match route.metrics.iter().find(|metric| metric.kind == RTAX_CC_ALGO) {
        Some(metric) => {
            format!("{name} with congestion control {}", String::from_utf8_lossy(&metric.value).trim_end_matches('\0'))
        }
        None => name,
    }
}

fn route_message(index: u32, route: &Route) -> Message<RouteHeader> {
    let header = RouteHeader {
        address_family: family(route.destination),
        destination_prefix_length: route.prefix,
        // Larger numbers than the header has room for stand in an attribute.
        table: u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: route.protocol.into(),
        scope: route.scope.into(),
        kind: route.kind.into(),
        tos: route.tos,
        flags: if route.on_link { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    let own = [number(libc::RTA_OIF, index), number(libc::RTA_TABLE, route.table)];
    let optional = [
        (route.prefix > 0).then(|| ip(libc::RTA_DST, route.destination)),
        route.gateway.map(|gateway| gateway_of(route, gateway)),
        route.source.map(|source| ip(libc::RTA_PREFSRC, source)),
        route.metric.map(|metric| number(libc::RTA_PRIORITY, metric)),
        (!route.metrics.is_empty()).then(|| metrics(&route.metrics)),
        route.preference.map(|preference| DefaultNla::new(RTA_PREF, vec![preference])),
        route.expires.map(|seconds| number(RTA_EXPIRES, seconds)),
    ];
    Message { header, attributes: own.into_iter().chain(optional.into_iter().flatten()).collect() }
}

/// A gateway of the other family is told in another way (`struct rtvia`).
fn gateway_of(route: &Route, gateway: IpAddr) -> DefaultNla {
    if gateway.is_ipv4() == route.destination.is_ipv4() {
        return ip(libc::RTA_GATEWAY, gateway);
    }
    let family = u16::from(u8::from(family(gateway)));
    DefaultNla::new(libc::RTA_VIA, [&family.to_ne_bytes(), octets(gateway).as_slice()].concat())
}

/// Metrics are attributes in an attribute.
fn metrics(metrics: &[RouteMetric]) -> DefaultNla {
    let metrics: Vec<_> = metrics.iter().map(|metric| DefaultNla::new(metric.kind, metric.value.clone())).collect();
    let mut value = vec![0; metrics.as_slice().buffer_len()];
    metrics.as_slice().emit(&mut value);
    DefaultNla::new(libc::RTA_METRICS, value)
}

fn neighbour_message(index: u32, neighbour: &Neighbour) -> Message<NeighbourHeader> {
    let header = NeighbourHeader {
        family: family(neighbour.address),
        ifindex: index,
        state: NeighbourState::Permanent,
        ..NeighbourHeader::default()
    };
    let hardware = DefaultNla::new(libc::NDA_LLADDR, neighbour.hardware.to_vec());
    Message { header, attributes: vec![ip(libc::NDA_DST, neighbour.address), hardware] }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Parseable;
    use netlink_packet_route::address::{AddressAttribute, AddressMessage};
    use netlink_packet_route::route::{
        RouteAddress, RouteAttribute, RouteMessage, RouteMetric as Told, RoutePreference, RouteVia,
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

    /// What a reader of the message finds in it.
    fn attributes(route: &Route) -> Vec<RouteAttribute> {
        let message = RouteMessage::parse(&bytes(&route_message(7, route))).unwrap();
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
    fn a_route_has_all_that_the_host_said_of_it() {
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
        assert_eq!(described(&route), "route to 192.0.2.0/24 with congestion control bbr");
        let found = attributes(&route);
        for expected in [
            RouteAttribute::Destination(RouteAddress::Inet([192, 0, 2, 0].into())),
            RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap())),
            RouteAttribute::PrefSource(RouteAddress::Inet([10, 0, 0, 2].into())),
            RouteAttribute::Priority(77),
            RouteAttribute::Metrics(vec![Told::Mtu(1300), Told::CcAlgo("bbr".into())]),
            RouteAttribute::Preference(RoutePreference::Low),
            RouteAttribute::Expires(9),
            RouteAttribute::Table(1000),
        ] {
            assert!(found.contains(&expected), "{expected:?} is not in {found:?}");
        }
    }

    #[test]
    fn an_address_is_not_looked_for_on_the_network_again() {
        let own: IpAddr = "fd00::1".parse().unwrap();
        let address =
            Address { address: own, prefix: 64, peer: None, broadcast: None, scope: 0, no_prefix_route: true };
        let message = AddressMessage::parse(&bytes(&address_message(7, &address))).unwrap();
        assert_eq!((message.header.index, message.header.prefix_len), (7, 64));
        let flags = AddressFlags::Permanent | AddressFlags::Nodad | AddressFlags::Noprefixroute;
        let expected = [AddressAttribute::Local(own), AddressAttribute::Address(own), AddressAttribute::Flags(flags)];
        assert_eq!(message.attributes, expected);
    }
}
