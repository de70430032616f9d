//! The protocol between `vmrt-vmm` and `vmrt-agent`, PID 1 of every guest.
//!
//! The agent connects to [`CONTROL_PORT`] of the host (vsock CID 2) and sends [`Hello`]. Then the VMM sends [`Call`]s,
//! the first one with a [`StreamSecret`].
//! The agent answers each one with a [`FromAgent::Reply`] that contains the call's id; replies may come in any order.
//! It reports [`Event`]s when they happen. Every message is one frame: see [`frame`].
//!
//! Standard streams use separate connections: for each, the agent connects to the host port in [`Stdio`]. The first
//! bytes of such a connection are the [`StreamSecret`]. After them it carries raw bytes.

use std::net::Ipv4Addr;

mod cgroup_weight;
mod container;
mod container_request;
mod exit_status;
pub mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod message;
#[cfg(feature = "netlink")]
pub mod netlink;
mod network;
mod process;
mod seed;
mod stream_secret;

pub use cgroup_weight::{cpu_weight, io_weight};
pub use container::*;
pub use container_request::ContainerRequest;
pub use exit_status::describe_exit_status;
pub use message::*;
pub use network::*;
pub use process::*;
pub use seed::Seed;
pub use stream_secret::StreamSecret;

/// Version of this protocol. Both sides are built from the same sources, so a difference is an installation error.
pub const VERSION: u32 = 2;

/// Host port of the control connection.
pub const CONTROL_PORT: u32 = 1024;

/// Tag of a guest's only virtio-fs device.
pub const SHARES_TAG: &str = "vmrt";

/// Mount point of that device in the guest. The share `web/rootfs` is the directory `web/rootfs` below it.
pub const SHARES_DIR: &str = "/run/vmrt/shares";

/// Address of Docker's name server in the network namespace of a sandbox. It listens at port 53.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Directory of special files in the guest: see [`SpecialFile`].
pub const SPECIAL_DIR: &str = "/run/vmrt/special";

/// Directory of the guest's own devices, which mounts may use as their source.
pub const DEVICES_DIR: &str = "/run/vmrt/dev";

/// Directory of the guest's own huge pages, which mounts may use as their source.
pub const HUGE_PAGES_DIR: &str = "/run/vmrt/hugepages";

/// Directory that stands for a container's own file systems of the guest's kernel. Sources of bind mounts are `proc`,
/// `sysfs` and `cgroup2` in it, and paths in these.
pub const KERNEL_VIEWS_DIR: &str = "/run/vmrt/kernel";
