//! Containers: what the agent knows of each, and how they are made.

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

/// A container the agent knows.
pub(crate) struct Container {
    /// Its namespaces.
    pub(crate) namespaces: Namespaces,
    /// Pid of its first process; none once that ended and everything of the container is gone.
    pub(crate) init: Option<i32>,
    /// Its cgroup.
    pub(crate) cgroup: Cgroup,
    /// Waits for its processes to stop, or to go on, in the order in which they were asked for.
    pub(crate) freezes: Vec<Freeze>,
    /// What tells that its last process is gone, once its first one has ended before that.
    pub(crate) empty_events: Option<OwnedFd>,
    /// The filter of its processes' system calls.
    pub(crate) seccomp: Option<Filter>,
    /// The execution domain of all its processes.
    pub(crate) personality: Option<u64>,
    /// The CPUs of further processes that name none themselves.
    pub(crate) affinity: Option<Affinity>,
    /// Its special files.
    pub(crate) special_files: SpecialFiles,
    /// The mappings of its user namespace.
    pub(crate) id_maps: Option<IdMaps>,
    /// Devices made for it.
    pub(crate) _nodes: Option<Nodes>,
    /// What stands in it for a name server of the host.
    pub(crate) name_server: Option<NameServer>,
}

/// A change of a container's cgroup that the kernel completes by itself.
pub(crate) struct Freeze {
    /// Id of the call that is answered then.
    pub(crate) call: u64,
    /// What was asked for.
    pub(crate) frozen: bool,
    /// The file that tells. Closing it ends the watch.
    pub(crate) events: OwnedFd,
}
