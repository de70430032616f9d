//! Making the processes of a container.

pub(crate) mod child;
pub(crate) mod join;

use std::os::fd::BorrowedFd;

use rustix::thread::ThreadNameSpaceType;

use self::child::Role;
use self::join::Shared;
use crate::container::Container;
use crate::container::cgroup::Cgroup;
use crate::container::namespaces::time;
use crate::container::plan::ContainerPlan;
use crate::container::process::ProcessPlan;
use crate::error::Error;
use crate::machine::file_systems::GuestFds;
use crate::processes::Spawned;
use crate::processes::channel::Channel;
use crate::processes::stdio::ChildStdio;
use crate::sys::clone::{self, Cloned};

/// Makes the first process of a container. `shared` are the namespaces of other containers that it joins.
pub(crate) fn spawn_init(
    guest: GuestFds<'_>,
    plan: &ContainerPlan,
    shared: &[Shared<'_>],
    cgroup: &Cgroup,
    stdio: &ChildStdio,
) -> Result<Spawned, Error> {
    let (flags, cgroup) = (plan.namespaces.clone_flags(), cgroup.directory());
    let spawn = || {
        let make = || match shared {
            // SAFETY: the agent has only one thread.
            [] => unsafe { clone::clone3(flags, Some(cgroup)) }.map_err(Error::at("make a process")),
            // SAFETY: as above.
            _ => unsafe { join::clone_in_namespaces(shared, flags, cgroup) },
        };
        spawn(guest, make, &Role::Init(plan), stdio)
    };
    time::with_offsets(guest, plan.namespaces, &plan.time_offsets, spawn)
}

/// Runs `spawn` so that it makes a process in the pid namespace of `process`, a pidfd.
///
/// A process cannot change its own pid namespace, only that of its future children. So the agent sets that, makes the
/// process, and resets it. No helper process is needed.
fn in_pid_namespace(
    guest: GuestFds<'_>,
    process: BorrowedFd<'_>,
    spawn: impl FnOnce() -> Result<Spawned, Error>,
) -> Result<Spawned, Error> {
    let point_to = |process| rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID);
    point_to(process).map_err(Error::at("join the container's pid namespace"))?;
    let spawned = spawn();
    point_to(guest.agent).map_err(Error::at("return to the guest's pid namespace"))?;
    spawned
}

/// Makes a further process of a container in `cgroup`. `init` is a pidfd of the container's first process.
pub(crate) fn spawn_exec(
    guest: GuestFds<'_>,
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
    let make = || unsafe { clone::clone3(0, Some(cgroup)) }.map_err(Error::at("make a process"));
    let spawn = || spawn(guest, make, &role, stdio);
    if namespaces.has(ThreadNameSpaceType::PROCESS_ID) { in_pid_namespace(guest, init, spawn) } else { spawn() }
}

fn spawn(
    guest: GuestFds<'_>,
    make: impl FnOnce() -> Result<Cloned, Error>,
    role: &Role<'_>,
    stdio: &ChildStdio,
) -> Result<Spawned, Error> {
    let (agent_end, process_end) = Channel::pair()?;
    match make()? {
        Cloned::Child => child::run(role, stdio, &process_end, guest.proc),
        Cloned::Parent(pid, pidfd) => Ok(Spawned { pid, pidfd, channel: agent_end }),
    }
}
