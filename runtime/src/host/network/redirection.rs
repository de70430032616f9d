//! Redirections between an interface and its tap, in both directions, with an ingress qdisc, a matchall filter and a mirred action
//! (tc-mirred(8)).

use std::io;

use agent::Interface;
use agent::netlink::Netlink;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterMatchAllOption, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
};
use nix::libc;

use super::anti_spoofing;
use super::error::NetworkError;
use super::link::Link;

/// Handle of the ingress qdisc.
pub(super) const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// The filter's priority, the highest, and its protocol, `ETH_P_ALL` in network byte order: it matches every frame first.
const EVERY_FRAME: u32 = 1 << 16 | (3_u16.to_be() as u32);

/// Redirects the traffic between an interface and a tap. `tag` identifies the redirections of a sandbox. With a `source`, frames of the
/// guest with other source addresses than this interface's are dropped.
///
/// # Errors
/// The interface has an ingress qdisc already, or a request failed. The interface is as before; what was set on the tap ends with
/// the tap.
pub(super) fn add(
    netlink: &mut Netlink,
    link: &Link,
    tap: u32,
    tag: u32,
    source: Option<&Interface>,
) -> Result<(), NetworkError> {
    add_qdisc(netlink, tap).map_err(link.failed("redirect the guest's traffic to network interface"))?;
    match source {
        None => add_redirection(netlink, tap, link.index, tag)
            .map_err(link.failed("redirect the guest's traffic to network interface"))?,
        Some(interface) => anti_spoofing::add(netlink, tap, link.index, interface)
            .map_err(link.failed("restrict the source addresses of network interface"))?,
    }
    add_qdisc(netlink, link.index).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => NetworkError::Refused {
            name: link.name.clone(),
            reason: "its incoming traffic is another program's or another sandbox's already".to_owned(),
        },
        _ => link.failed("redirect the traffic of network interface")(error),
    })?;
    add_redirection(netlink, link.index, tap, tag).map_err(|error| {
        // An ingress qdisc without a redirection would only block another program's.
        let _ = remove_qdisc(netlink, link.index);
        link.failed("redirect the traffic of network interface")(error)
    })
}

/// Removes the redirection `tag` from an interface. An interface that is gone, or that has another redirection now, is no error.
pub(super) fn remove(netlink: &mut Netlink, index: u32, tag: u32) -> io::Result<()> {
    let Ok(mut header) = message(index, TcHandle::INGRESS) else { return Ok(()) };
    header.header.parent = INGRESS;
    let filters = match netlink.list(libc::RTM_GETTFILTER, &header) {
        // The interface or its qdisc does not exist, so there is no redirection.
        Err(_) => return Ok(()),
        Ok(filters) => filters,
    };
    let ours = TcHandle::from(tag);
    let is_ours = |body: &Vec<u8>| TcMessage::parse(body).is_ok_and(|filter| filter.header.handle == ours);
    if filters.iter().any(is_ours) { remove_qdisc(netlink, index) } else { Ok(()) }
}

pub(super) fn message(index: u32, parent: TcHandle) -> io::Result<TcMessage> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).map_err(io::Error::other)?;
    message.header.parent = parent;
    Ok(message)
}

fn qdisc(index: u32) -> io::Result<TcMessage> {
    let mut message = message(index, TcHandle::INGRESS)?;
    message.header.handle = INGRESS;
    message.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    Ok(message)
}

fn add_qdisc(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    netlink.change(libc::RTM_NEWQDISC, &qdisc(index)?, NLM_F_CREATE | NLM_F_EXCL)
}

fn remove_qdisc(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    netlink.change(libc::RTM_DELQDISC, &qdisc(index)?, 0)
}

/// Redirects every frame that `from` receives to the egress of `to`.
fn add_redirection(netlink: &mut Netlink, from: u32, to: u32, tag: u32) -> io::Result<()> {
    let mut filter = message(from, INGRESS)?;
    filter.header.handle = TcHandle::from(tag);
    filter.header.info = EVERY_FRAME;
    filter.attributes = vec![
        TcAttribute::Kind("matchall".to_owned()),
        TcAttribute::Options(vec![TcOption::MatchAll(TcFilterMatchAllOption::Action(vec![redirection(to)]))]),
    ];
    netlink.change(libc::RTM_NEWTFILTER, &filter, NLM_F_CREATE | NLM_F_EXCL)
}

/// An action that redirects a frame to the egress of the interface `to`.
pub(super) fn redirection(to: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    // Actions are numbered from 1.
    action.tab = 1;
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    action
}
