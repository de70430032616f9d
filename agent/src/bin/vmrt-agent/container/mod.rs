//! Containers: the agent's record of each, and how they are made.
//!
//! A request is converted into a plan, which is checked completely before anything is made: [`plan`] for the container,
//! made of the parts in [`cgroup`], [`namespaces`], [`rootfs`] and [`hooks`], and [`process`] for each process.
//! [`spawn`] then makes the process, which applies the plan to itself.

pub(crate) mod cgroup;
pub(crate) mod hooks;
pub(crate) mod namespaces;
pub(crate) mod plan;
pub(crate) mod process;
pub(crate) mod process_list;
pub(crate) mod rootfs;
pub(crate) mod spawn;
pub(crate) mod special_files;

use std::os::fd::OwnedFd;

use self::cgroup::Cgroup;
use self::namespaces::Namespaces;
use self::namespaces::user::IdMaps;
use self::process::affinity::Affinity;
use self::process::seccomp::Filter;
use self::rootfs::devices::Nodes;
use self::special_files::SpecialFiles;
use crate::network::name_server::NameServer;

/// The agent's record of a container.
pub(crate) struct Container {
    /// Its namespaces.
    pub(crate) namespaces: Namespaces,
    /// Pid of its first process. `None` when that has ended and the cgroup is removed.
    pub(crate) init: Option<i32>,
    /// Its cgroup.
    pub(crate) cgroup: Cgroup,
    /// Pending freezes and thaws, in the order of the requests.
    pub(crate) freezes: Vec<Freeze>,
    /// Watched for the end of its last process, if its first process ended before.
    pub(crate) empty_events: Option<OwnedFd>,
    /// The system call filter of its processes.
    pub(crate) seccomp: Option<Filter>,
    /// The execution domain of all its processes.
    pub(crate) personality: Option<u64>,
    /// The CPUs of further processes without an affinity of their own.
    pub(crate) affinity: Option<Affinity>,
    /// Its special files.
    pub(crate) special_files: SpecialFiles,
    /// The mappings of its user namespace.
    pub(crate) id_maps: Option<IdMaps>,
    /// Device nodes that the agent made for it. They are removed with the record.
    pub(crate) _nodes: Option<Nodes>,
    /// Its access to a name server of the host.
    pub(crate) name_server: Option<NameServer>,
}

/// A freeze or thaw that the kernel completes asynchronously.
pub(crate) struct Freeze {
    /// Id of the call to answer.
    pub(crate) call: u64,
    /// The requested state.
    pub(crate) frozen: bool,
    /// The watched `cgroup.events`. Closing it ends the watch.
    pub(crate) events: OwnedFd,
}
