//! The filters on a tap that let a guest send only with the addresses of its interface: tc-flower(8) filters that redirect such frames,
//! and one after them that drops every other frame.
//!
//! Of a priority's filters, all are for one protocol, so a set of filters has three priorities. There are two places for a set: a
//! changed interface gets its new set before the old one is removed.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent::netlink::Netlink;
use agent::{HardwareAddress, Interface};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionOption, TcAttribute, TcFilterFlowerOption, TcFilterMatchAllOption, TcMessage,
    TcOption,
};
use nix::libc;

use super::redirection::{INGRESS, message, redirection};

/// The first priorities of the two places for a set of filters.
const PLACES: [u16; 2] = [1, 11];

/// The priority of the filter that drops frames. A lower number comes first.
const DROP_PRIORITY: u16 = 100;

/// The protocols of a set, `ETH_P_*`, in the order of their priorities.
const PROTOCOLS: [u16; 3] = [ARP, IPV4, IPV6];
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const EVERY_PROTOCOL: u16 = 0x0003;

const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const DHCP_CLIENT_PORT: u16 = 68;
const DHCP_SERVER_PORT: u16 = 67;

/// `TCA_GACT_PARMS` and `TC_ACT_SHOT`.
const GACT_PARAMETERS: u16 = 2;
const DROP: i32 = 2;

/// A frame that the guest may send, by its protocol and its fields.
type Permission = (u16, Vec<TcFilterFlowerOption>);

/// Redirects the frames that `tap` receives from the guest to the egress of the interface `to`, if their source addresses are those of
/// `interface`, and drops others.
///
/// # Errors
/// A request failed, among others because the kernel has no `flower` or `gact`.
pub(super) fn add(netlink: &mut Netlink, tap: u32, to: u32, interface: &Interface) -> io::Result<()> {
    let drop = vec![TcOption::MatchAll(TcFilterMatchAllOption::Action(vec![drop_action()]))];
    change(netlink, tap, DROP_PRIORITY, EVERY_PROTOCOL, Some(("matchall", drop)))?;
    add_set(netlink, tap, to, interface, PLACES[0])
}

/// Replaces the permissions of a tap by those of the changed `interface`.
///
/// # Errors
/// A request failed. The old permissions may still be there, and some of the new ones; the next call removes them.
pub(super) fn replace(netlink: &mut Netlink, tap: u32, to: u32, interface: &Interface) -> io::Result<()> {
    let used = priorities(netlink, tap)?;
    let is_used = |place: u16| used.iter().any(|priority| (place..place + 3).contains(priority));
    let [new, old] = if is_used(PLACES[0]) { [PLACES[1], PLACES[0]] } else { PLACES };
    remove_set(netlink, tap, new)?;
    add_set(netlink, tap, to, interface, new)?;
    remove_set(netlink, tap, old)
}

fn add_set(netlink: &mut Netlink, tap: u32, to: u32, interface: &Interface, place: u16) -> io::Result<()> {
    for (protocol, mut fields) in permissions(interface) {
        fields.push(TcFilterFlowerOption::Actions(vec![redirection(to)]));
        let options = fields.into_iter().map(TcOption::Flower).collect();
        change(netlink, tap, priority(place, protocol), protocol, Some(("flower", options)))?;
    }
    Ok(())
}

fn remove_set(netlink: &mut Netlink, tap: u32, place: u16) -> io::Result<()> {
    PROTOCOLS.into_iter().try_for_each(|protocol| {
        match change(netlink, tap, priority(place, protocol), protocol, None) {
            // The set has no filters for this protocol.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    })
}

fn priority(place: u16, protocol: u16) -> u16 {
    (place..).zip(PROTOCOLS).find(|(_, of)| *of == protocol).map_or(place, |(priority, _)| priority)
}

/// Adds a filter of a kind with options, or without them removes all filters of the priority.
fn change(
    netlink: &mut Netlink,
    tap: u32,
    priority: u16,
    protocol: u16,
    filter: Option<(&str, Vec<TcOption>)>,
) -> io::Result<()> {
    let mut request = message(tap, INGRESS)?;
    request.header.info = u32::from(priority) << 16 | u32::from(protocol.to_be());
    let Some((kind, options)) = filter else { return netlink.change(libc::RTM_DELTFILTER, &request, 0) };
    request.attributes = vec![TcAttribute::Kind(kind.to_owned()), TcAttribute::Options(options)];
    netlink.change(libc::RTM_NEWTFILTER, &request, NLM_F_CREATE | NLM_F_EXCL)
}

/// The priorities of a tap's filters.
fn priorities(netlink: &mut Netlink, tap: u32) -> io::Result<BTreeSet<u16>> {
    let request: TcMessage = message(tap, INGRESS)?;
    let filters = netlink.list(libc::RTM_GETTFILTER, &request)?;
    // `tcm_info` of `struct tcmsg` has the priority in its upper half.
    let info = |body: &Vec<u8>| Some(u32::from_ne_bytes(*body.get(16..)?.first_chunk()?));
    Ok(filters.iter().filter_map(info).filter_map(|info| u16::try_from(info >> 16).ok()).collect())
}

/// The frames that the guest of `interface` may send.
fn permissions(interface: &Interface) -> Vec<Permission> {
    use TcFilterFlowerOption as Field;
    let hardware = interface.hardware;
    let addresses: BTreeSet<IpAddr> = interface.addresses.iter().map(|address| address.address).collect();
    let mut permissions = Vec::new();
    let mut permit = |protocol, fields: Vec<Field>| permissions.push(frame(hardware, protocol, fields));
    let any = Ipv4Addr::UNSPECIFIED;
    let arp = |sender| vec![Field::ArpSha(hardware), Field::ArpShaMask([0xff; 6]), Field::ArpSip(sender), ARP_SIP_MASK];
    // A probe for an address that is not used yet (RFC 5227, 2.1.1).
    permit(ARP, arp(any));
    let dhcp = [Field::IpProto(UDP), Field::UdpSrc(DHCP_CLIENT_PORT), Field::UdpDst(DHCP_SERVER_PORT)];
    permit(IPV4, [ipv4(any), dhcp.into()].concat());
    // Duplicate address detection, solicitation of routers, and reports of multicast listeners.
    permit(IPV6, [ipv6(Ipv6Addr::UNSPECIFIED, 128), vec![Field::IpProto(ICMPV6)]].concat());
    permit(IPV6, ipv6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));
    for address in addresses {
        match address {
            IpAddr::V4(address) => {
                permit(ARP, arp(address));
                permit(IPV4, ipv4(address));
            }
            // The prefix above covers it.
            IpAddr::V6(address) if address.is_unicast_link_local() => {}
            IpAddr::V6(address) => permit(IPV6, ipv6(address, 128)),
        }
    }
    permissions
}

const ARP_SIP_MASK: TcFilterFlowerOption = TcFilterFlowerOption::ArpSipMask(Ipv4Addr::BROADCAST);

fn frame(hardware: HardwareAddress, protocol: u16, fields: Vec<TcFilterFlowerOption>) -> Permission {
    use TcFilterFlowerOption as Field;
    let mut all = vec![Field::EthType(protocol), Field::EthSrc(hardware), Field::EthSrcMask([0xff; 6])];
    all.extend(fields);
    (protocol, all)
}

fn ipv4(source: Ipv4Addr) -> Vec<TcFilterFlowerOption> {
    vec![TcFilterFlowerOption::Ipv4Src(source), TcFilterFlowerOption::Ipv4SrcMask(Ipv4Addr::BROADCAST)]
}

fn ipv6(source: Ipv6Addr, prefix: u32) -> Vec<TcFilterFlowerOption> {
    let mask = Ipv6Addr::from_bits(u128::MAX << (128 - prefix));
    vec![TcFilterFlowerOption::Ipv6Src(source), TcFilterFlowerOption::Ipv6SrcMask(mask)]
}

/// `struct tc_gact` of an action that drops the frame: index, capabilities, action, and two counts.
fn drop_action() -> TcAction {
    let parameters = [0, 0, DROP, 0, 0].map(i32::to_ne_bytes).concat();
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("gact".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Other(DefaultNla::new(GACT_PARAMETERS, parameters))]),
    ];
    action
}

#[cfg(test)]
mod tests {
    use agent::Address;
    use netlink_packet_core::Emitable;

    use super::*;

    const HARDWARE: HardwareAddress = [2, 0x99, 0, 0, 0, 1];

    fn interface(addresses: &[&str]) -> Interface {
        let address = |text: &&str| {
            let address = text.parse().unwrap();
            Address { address, prefix: 24, peer: None, broadcast: None, scope: 0, no_prefix_route: false }
        };
        let addresses = addresses.iter().map(address).collect();
        let (routes, neighbours) = (Vec::new(), Vec::new());
        Interface { name: "eth0".into(), hardware: HARDWARE, mtu: 1500, ipv6: true, addresses, routes, neighbours }
    }

    /// A frame that a guest sends.
    #[derive(Clone, Copy, Debug)]
    struct Frame {
        hardware: HardwareAddress,
        protocol: u16,
        source: IpAddr,
        arp_hardware: HardwareAddress,
        ip_protocol: u8,
        ports: (u16, u16),
    }

    fn sent(protocol: u16, source: &str) -> Frame {
        let source = source.parse().unwrap();
        Frame { hardware: HARDWARE, protocol, source, arp_hardware: HARDWARE, ip_protocol: 6, ports: (40_000, 80) }
    }

    /// Whether a frame has the fields, as the kernel compares them.
    fn matches(fields: &[TcFilterFlowerOption], frame: Frame) -> bool {
        use TcFilterFlowerOption as Field;
        let mask = fields.iter().find_map(|field| match field {
            Field::Ipv6SrcMask(mask) => Some(mask.to_bits()),
            _ => None,
        });
        fields.iter().all(|field| match field {
            Field::EthType(protocol) => *protocol == frame.protocol,
            Field::EthSrc(hardware) => *hardware == frame.hardware,
            Field::ArpSha(hardware) => *hardware == frame.arp_hardware,
            Field::ArpSip(source) | Field::Ipv4Src(source) => IpAddr::V4(*source) == frame.source,
            Field::Ipv6Src(source) => match frame.source {
                IpAddr::V6(address) => (address.to_bits() ^ source.to_bits()) & mask.unwrap() == 0,
                IpAddr::V4(_) => false,
            },
            Field::IpProto(protocol) => *protocol == frame.ip_protocol,
            Field::UdpSrc(port) => *port == frame.ports.0,
            Field::UdpDst(port) => *port == frame.ports.1,
            Field::EthSrcMask(mask) | Field::ArpShaMask(mask) => *mask == [0xff; 6],
            Field::ArpSipMask(mask) | Field::Ipv4SrcMask(mask) => *mask == Ipv4Addr::BROADCAST,
            Field::Ipv6SrcMask(_) => true,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_guest_may_send_with_its_own_addresses_only() {
        let permissions = permissions(&interface(&["10.0.0.2", "10.0.0.2", "fd00::2", "fe80::2"]));
        let passes = |frame| permissions.iter().any(|(_, fields)| matches(fields, frame));
        for (protocol, source, is_own) in [
            (ARP, "10.0.0.2", true),
            (ARP, "0.0.0.0", true),
            (ARP, "10.0.0.3", false),
            (IPV4, "10.0.0.2", true),
            (IPV4, "10.0.0.3", false),
            (IPV4, "0.0.0.0", false),
            (IPV6, "fd00::2", true),
            (IPV6, "fd00::3", false),
            (IPV6, "fe80::1:2", true),
            (IPV6, "fec0::2", false),
            (IPV6, "::", false),
            (0x8100, "10.0.0.2", false),
        ] {
            let frame = sent(protocol, source);
            assert_eq!(passes(frame), is_own, "{frame:?}");
            assert!(!passes(Frame { hardware: [2, 0x99, 0, 0, 0, 2], ..frame }), "with another hardware address");
        }
        assert!(!passes(Frame { arp_hardware: [2; 6], ..sent(ARP, "10.0.0.2") }));
        let dhcp = Frame { ip_protocol: UDP, ports: (68, 67), ..sent(IPV4, "0.0.0.0") };
        assert!(passes(dhcp) && !passes(Frame { ports: (68, 68), ..dhcp }));
        assert!(passes(Frame { ip_protocol: ICMPV6, ..sent(IPV6, "::") }));
    }

    #[test]
    fn a_filter_occurs_once_and_its_priority_has_one_protocol() {
        let permissions = permissions(&interface(&["10.0.0.2", "10.0.0.2", "fd00::2", "fe80::2"]));
        for (index, permission) in permissions.iter().enumerate() {
            assert!(!permissions[..index].contains(permission), "{permission:?}");
        }
        let priorities = |place| PROTOCOLS.map(|protocol| priority(place, protocol));
        assert_eq!((priorities(PLACES[0]), priorities(PLACES[1])), ([1, 2, 3], [11, 12, 13]));
        assert!(PLACES.into_iter().flat_map(priorities).all(|priority| priority < DROP_PRIORITY));
    }

    #[test]
    fn the_drop_action_has_the_kernels_format() {
        let action = drop_action();
        let mut bytes = vec![0; action.attributes.as_slice().buffer_len()];
        action.attributes.as_slice().emit(&mut bytes);
        // TCA_ACT_KIND with "gact" and its NUL, padded; TCA_ACT_OPTIONS with TCA_GACT_PARMS.
        let kind = [9, 0, 1, 0, b'g', b'a', b'c', b't', 0, 0, 0, 0];
        let options = [28, 0, 2, 0, 24, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes[..12], kind);
        // The kernel ignores the flag of nested attributes.
        let nested = [bytes[12], bytes[13], bytes[14], bytes[15] & 0x7f];
        assert_eq!([&nested[..], &bytes[16..]].concat(), options);
    }
}
