//! Containers: how they are made, and what the agent remembers of them.

pub(crate) mod cgroup;
pub(crate) mod init;
pub(crate) mod listing;
pub(crate) mod plan;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod terminal;

mod affinity;
mod capabilities;
mod copy_up;
pub(crate) mod devices;
mod hooks;
mod id_mapping;
mod joining;
mod mount_options;
mod mounts;
pub(crate) mod namespaces;
mod paths;
mod program;
mod rootfs;
pub(crate) mod scheduling;
mod seccomp;
mod sysctl;
mod time;
pub(crate) mod user;

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::thread::ThreadNameSpaceType;

use crate::container::affinity::Affinity;
use crate::container::cgroup::Cgroup;
use crate::container::devices::Nodes;
use crate::container::init::{ChildStdio, Role};
pub(crate) use crate::container::joining::Shared;
pub(crate) use crate::container::namespaces::Namespaces;
use crate::container::plan::ContainerPlan;
use crate::container::process::ProcessPlan;
use crate::container::report::Channel;
use crate::container::seccomp::Filter;
use crate::container::user::IdMaps;
use crate::error::Error;
use crate::name_server::NameServer;
use crate::special::SpecialFiles;
use crate::sys::{self, Cloned};

/// A container the agent knows.
pub(crate) struct Container {
    /// Its namespaces.
    pub(crate) namespaces: Namespaces,
    /// Pid of its first process; none once that ended and everything of the container is gone.
    pub(crate) init: Option<i32>,
    /// Its cgroup.
    pub(crate) cgroup: Cgroup,
    /// Waits for its processes to stop, or to go on, in the order in which they were asked for.
    pub(crate) freezing: Vec<Freezing>,
    /// What tells that its last process is gone, once its first one has ended before that.
    pub(crate) emptying: Option<OwnedFd>,
    /// The filter of its processes' system calls.
    pub(crate) seccomp: Option<Filter>,
    /// The execution domain of all its processes.
    pub(crate) personality: Option<u64>,
    /// The CPUs of further processes that name none themselves.
    pub(crate) affinity: Option<Affinity>,
    /// Its special files.
    pub(crate) special: SpecialFiles,
    /// The mappings of its user namespace.
    pub(crate) id_maps: Option<IdMaps>,
    /// Devices made for it.
    pub(crate) _nodes: Option<Nodes>,
    /// What stands in it for a name server of the host.
    pub(crate) name_server: Option<NameServer>,
}

/// A change of a container's cgroup that the kernel completes by itself.
pub(crate) struct Freezing {
    /// Id of the call that is answered then.
    pub(crate) call: u64,
    /// What was asked for.
    pub(crate) frozen: bool,
    /// The file that tells. Closing it ends the watch.
    pub(crate) events: OwnedFd,
}

/// A process that was just made, and reports through `channel`.
pub(crate) struct Spawned {
    /// Its pid in the guest.
    pub(crate) pid: i32,
    /// A descriptor of it.
    pub(crate) pidfd: OwnedFd,
    /// The agent's end.
    pub(crate) channel: Channel,
}

/// Descriptors of the agent that making a process takes.
#[derive(Clone, Copy)]
pub(crate) struct Guest<'a> {
    /// The guest's `/proc`.
    pub(crate) proc: BorrowedFd<'a>,
    /// The agent itself, as a pidfd.
    pub(crate) agent: BorrowedFd<'a>,
}

/// Makes the first process of a container, some of whose namespaces are other containers'.
pub(crate) fn spawn_init(
    guest: Guest<'_>,
    plan: &ContainerPlan,
    shared: &[Shared<'_>],
    cgroup: &Cgroup,
    stdio: &ChildStdio,
) -> Result<Spawned, Error> {
    let (flags, cgroup) = (plan.namespaces.clone_flags(), cgroup.directory());
    let spawn = || {
        let make = || match shared {
            // SAFETY: the agent has only one thread.
            [] => unsafe { sys::clone3(flags, Some(cgroup)) }.map_err(Error::at("make a process")),
            // SAFETY: as above.
            _ => unsafe { joining::clone_in(shared, flags, cgroup) },
        };
        spawn(guest, make, &Role::Init(plan), stdio)
    };
    time::within(guest, plan.namespaces, &plan.time_offsets, spawn)
}

/// Makes a process by `spawn` in the pid namespace of `process`, a pidfd.
///
/// A process cannot move to another pid namespace, only its children can be born there. So the agent points its future
/// children there, makes the process, and points back: no process in between is needed.
fn beside(
    guest: Guest<'_>,
    process: BorrowedFd<'_>,
    spawn: impl FnOnce() -> Result<Spawned, Error>,
) -> Result<Spawned, Error> {
    let point_to = |process| rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID);
    point_to(process).map_err(Error::at("join the container's pid namespace"))?;
    let spawned = spawn();
    point_to(guest.agent).map_err(Error::at("return to the guest's pid namespace"))?;
    spawned
}

/// Makes a further process of a container whose first process is `init`, a pidfd, in `cgroup`.
pub(crate) fn spawn_exec(
    guest: Guest<'_>,
    container: &Container,
    init: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    process: &ProcessPlan,
    stdio: &ChildStdio,
) -> Result<Spawned, Error> {
    let namespaces = container.namespaces;
    let affinity = process.exec_affinity.as_ref().or(container.affinity.as_ref());
    let (seccomp, personality) = (container.seccomp.as_ref(), container.personality);
    let role = Role::Exec { container: init, namespaces, process, seccomp, affinity, personality };
    // SAFETY: the agent has only one thread.
    let make = || unsafe { sys::clone3(0, Some(cgroup)) }.map_err(Error::at("make a process"));
    let spawn = || spawn(guest, make, &role, stdio);
    if namespaces.has(ThreadNameSpaceType::PROCESS_ID) { beside(guest, init, spawn) } else { spawn() }
}

fn spawn(
    guest: Guest<'_>,
    make: impl FnOnce() -> Result<Cloned, Error>,
    role: &Role<'_>,
    stdio: &ChildStdio,
) -> Result<Spawned, Error> {
    let (near, far) = Channel::pair()?;
    match make()? {
        Cloned::Child => init::run(role, stdio, &far, guest.proc),
        Cloned::Parent(pid, pidfd) => Ok(Spawned { pid, pidfd, channel: near }),
    }
}
