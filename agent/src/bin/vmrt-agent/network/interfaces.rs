//! Network interfaces of containers: devices of the machine, moved into a container's network namespace and configured
//! like the interfaces on the host.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use agent::netlink::Netlink;
use agent::{AttachedInterface, Interface, InterfaceChange, Route};
use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::LinkFlags;

use super::links::{self, find_named, io_error};
use super::{messages, namespace};
use crate::error::Error;
use crate::sys::files;

/// Attaches interfaces to the container whose first process is `pid`, with `process` as its pidfd. `proc` is the
/// guest's `/proc`.
pub(crate) fn attach(
    proc: BorrowedFd<'_>,
    (pid, process): (i32, BorrowedFd<'_>),
    interfaces: &[AttachedInterface],
) -> Result<(), Error> {
    if interfaces.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open().map_err(io_error("open a netlink socket"))?;
    for AttachedInterface { slot, interface } in interfaces {
        let step = format!("move network interface {} into the container", interface.name);
        links::move_to_namespace(&mut netlink, *slot, &interface.name, pid).map_err(io_error(step))?;
    }
    namespace::run_in(proc, process, || {
        let mut netlink = Netlink::open().map_err(io_error("open a netlink socket"))?;
        configure_all(proc, &mut netlink, interfaces.iter().map(|attached| &attached.interface))
    })
}

/// Changes interfaces of the container with the process `process`. Whatever an interface loses is removed from all of
/// them first: a route that moves to another interface would otherwise still exist when it is added there.
pub(crate) fn change(proc: BorrowedFd<'_>, process: BorrowedFd<'_>, changes: &[InterfaceChange]) -> Result<(), Error> {
    namespace::run_in(proc, process, || {
        let mut netlink = Netlink::open().map_err(io_error("open a netlink socket"))?;
        for InterfaceChange { interface, removed } in changes {
            let index = find_named(&mut netlink, &interface.name)?;
            remove_settings(&mut netlink, index, removed)?;
        }
        // Each interface is configured completely: the removal of an address also removes the routes that depend on it.
        configure_all(proc, &mut netlink, changes.iter().map(|change| &change.interface))
    })
}

fn remove_settings(netlink: &mut Netlink, index: u32, removed: &Interface) -> Result<(), Error> {
    let name = &removed.name;
    for route in &removed.routes {
        remove(netlink, libc::RTM_DELROUTE, &messages::route(index, route)).map_err(|error| {
            io_error(format!("remove {} from network interface {name}", messages::describe_route(route)))(error)
        })?;
    }
    for neighbour in &removed.neighbours {
        let step = || format!("remove neighbour {} from network interface {name}", neighbour.address);
        let message = messages::neighbour(index, neighbour);
        remove(netlink, libc::RTM_DELNEIGH, &message).map_err(|error| io_error(step())(error))?;
    }
    for address in &removed.addresses {
        let step = || format!("remove address {}/{} from network interface {name}", address.address, address.prefix);
        let message = messages::address(index, address);
        remove(netlink, libc::RTM_DELADDR, &message).map_err(|error| io_error(step())(error))?;
    }
    Ok(())
}

/// Removes an object that may be gone already, because the kernel removed it with another one or the container removed
/// it.
fn remove(netlink: &mut Netlink, kind: u16, message: &impl Emitable) -> io::Result<()> {
    match netlink.change(kind, message, 0) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENOENT)) => Ok(()),
        result => result,
    }
}

/// Detaches interface `name` from the container with the process `process`, and moves its device back to the guest's
/// network namespace.
pub(crate) fn detach(proc: BorrowedFd<'_>, process: BorrowedFd<'_>, name: &str) -> Result<(), Error> {
    let step = || format!("detach network interface {name} from the container");
    let guest_namespace = namespace::open_own(proc)?;
    namespace::run_in(proc, process, || {
        let mut netlink = Netlink::open().map_err(io_error("open a netlink socket"))?;
        let index = find_named(&mut netlink, name)?;
        let guest_namespace = DefaultNla::new(libc::IFLA_NET_NS_FD, guest_namespace.as_raw_fd().to_ne_bytes().to_vec());
        // The name may be in use there. With this pattern the kernel chooses a free one.
        let attributes = vec![messages::text_attribute(libc::IFLA_IFNAME, "slot%d"), guest_namespace];
        links::change(&mut netlink, index, attributes, LinkFlags::empty()).map_err(io_error(step()))
    })
}

/// Configures interfaces in the network namespace of the caller.
fn configure_all<'a>(
    proc: BorrowedFd<'_>,
    netlink: &mut Netlink,
    interfaces: impl Iterator<Item = &'a Interface>,
) -> Result<(), Error> {
    for interface in interfaces {
        let index = find_named(netlink, &interface.name)?;
        configure(proc, netlink, index, interface)?;
    }
    Ok(())
}

/// Adds addresses before the interface is up, so that the kernel does not check the network for duplicates first, and
/// routes afterwards.
fn configure(proc: BorrowedFd<'_>, netlink: &mut Netlink, index: u32, interface: &Interface) -> Result<(), Error> {
    let name = &interface.name;
    if !interface.ipv6 {
        disable_ipv6(proc, name)?;
    }
    let attributes = vec![
        DefaultNla::new(libc::IFLA_ADDRESS, interface.hardware.to_vec()),
        messages::number_attribute(libc::IFLA_MTU, interface.mtu),
    ];
    links::change(netlink, index, attributes, LinkFlags::empty())
        .map_err(io_error(format!("set hardware address and MTU of network interface {name}")))?;
    for address in &interface.addresses {
        let step = || format!("add address {}/{} to network interface {name}", address.address, address.prefix);
        let message = messages::address(index, address);
        netlink
            .change(libc::RTM_NEWADDR, &message, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|error| io_error(step())(error))?;
    }
    links::change(netlink, index, Vec::new(), LinkFlags::Up)
        .map_err(io_error(format!("bring up network interface {name}")))?;
    for route in &interface.routes {
        add_route(netlink, index, route).map_err(|error| {
            io_error(format!("add {} through network interface {name}", messages::describe_route(route)))(error)
        })?;
    }
    for neighbour in &interface.neighbours {
        let step = || format!("add neighbour {} to network interface {name}", neighbour.address);
        let message = messages::neighbour(index, neighbour);
        netlink
            .change(libc::RTM_NEWNEIGH, &message, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|error| io_error(step())(error))?;
    }
    Ok(())
}

fn disable_ipv6(proc: BorrowedFd<'_>, name: &str) -> Result<(), Error> {
    // The kernel allows no slash in the name of an interface, so the name is one path component.
    let file = format!("sys/net/ipv6/conf/{name}/disable_ipv6");
    files::write_at(proc, &file, b"1").map_err(Error::at(format!("disable IPv6 on network interface {name}")))
}

/// Adds a route, unless the kernel added it together with an address.
fn add_route(netlink: &mut Netlink, index: u32, route: &Route) -> io::Result<()> {
    match netlink.change(libc::RTM_NEWROUTE, &messages::route(index, route), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}
