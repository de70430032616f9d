//! The protocol between `vmrt-vmm` and `vmrt-agent`, PID 1 of every guest.
//!
//! The agent connects to the host (vsock CID 2) on [`CONTROL_PORT`] and says [`Hello`]. From then on the VMM sends
//! [`Call`]s, the agent answers each with one [`FromAgent::Reply`] that carries the call's id, in any order, and tells
//! [`Event`]s when they happen. Every message is one frame: see [`frame`]. Standard streams are not part of this
//! connection: each is a vsock connection of its own, made by the agent to the host port that [`Stdio`] names, and
//! carries raw bytes.

use std::net::Ipv4Addr;

mod ending;
pub mod frame;
mod message;
#[cfg(feature = "netlink")]
pub mod netlink;
mod network;

pub use ending::describe;
pub use message::*;
pub use network::*;

/// Version of this protocol. Both sides are built from one tree, so any difference is a broken installation.
pub const VERSION: u32 = 1;

/// Host port of the control connection.
pub const CONTROL_PORT: u32 = 1024;

/// Tag of the one virtio-fs device of a guest.
pub const SHARES_TAG: &str = "vmrt";

/// Where the guest mounts that device; a share named `web/rootfs` is the directory `web/rootfs` below it.
pub const SHARES_DIR: &str = "/run/vmrt/shares";

/// Where Docker's name server listens, at port 53, in the network namespace of a sandbox.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Where the guest has special files: see [`SpecialFile`].
pub const SPECIAL_DIR: &str = "/run/vmrt/special";

/// Where the guest has its own devices, of which mounts may show a directory.
pub const DEVICES_DIR: &str = "/run/vmrt/dev";

/// Where the guest has its own huge pages, which mounts may show.
pub const HUGE_PAGES_DIR: &str = "/run/vmrt/hugepages";
