//! Processes that are made in namespaces of other containers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::Failure;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use rustix::thread::ThreadNameSpaceType;

use crate::error::Error;
use crate::sys::clone::{self, CLONE_PARENT, Cloned};
use crate::sys::process;

/// A namespace of this kind that is also this process's, which is named by a pidfd.
pub(crate) type Shared<'a> = (ThreadNameSpaceType, BorrowedFd<'a>);

/// Long enough for what a process in between has to tell.
const LIMIT: usize = 4096;

/// Makes a process in the namespaces `shared`, which are joined in this order, and in new ones, as [`clone::clone3`] does.
///
/// Who has joined a user namespace cannot leave it, and what is to belong to it has to be made there. So a process in between,
/// born in the agent's cgroup, joins them, makes the process as its own sibling, tells its pid and ends.
///
/// # Safety
///
/// As of [`clone::clone3`]: the calling process has only one thread.
pub(crate) unsafe fn clone_in_namespaces(
    shared: &[Shared<'_>],
    namespaces: u64,
    cgroup: BorrowedFd<'_>,
) -> Result<Cloned, Error> {
    let (near, far) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(Error::at("make a pipe"))?;
    // SAFETY: the caller vouches for a single thread.
    match unsafe { clone::clone3(0, None) }.map_err(Error::at("make a process"))? {
        Cloned::Parent(_, between) => {
            drop(far);
            let pid = receive_pid(&near);
            rustix::process::waitid(WaitId::PidFd(between.as_fd()), WaitIdOptions::EXITED)
                .map_err(Error::at("wait for a process"))?;
            let pid = pid?;
            let process = Pid::from_raw(pid).ok_or_else(died)?;
            let pidfd =
                rustix::process::pidfd_open(process, PidfdFlags::empty()).map_err(Error::at("find a process"))?;
            Ok(Cloned::Parent(pid, pidfd))
        }
        // SAFETY: a process that was just made has only one thread.
        Cloned::Child => match join(shared).and_then(|()| unsafe { make_sibling(namespaces, cgroup) }) {
            Ok(Cloned::Child) => Ok(Cloned::Child),
            Ok(Cloned::Parent(pid, _)) => send_pid(&far, &Ok(pid)),
            Err(error) => send_pid(&far, &Err(error.into())),
        },
    }
}

fn join(shared: &[Shared<'_>]) -> Result<(), Error> {
    let join = |(kind, process): &Shared<'_>| rustix::thread::move_into_thread_name_spaces(*process, *kind);
    shared.iter().try_for_each(join).map_err(Error::at("join the namespaces of another container"))
}

/// # Safety
///
/// As of [`clone::clone3`].
unsafe fn make_sibling(namespaces: u64, cgroup: BorrowedFd<'_>) -> Result<Cloned, Error> {
    // SAFETY: the caller vouches for a single thread.
    unsafe { clone::clone3(namespaces | CLONE_PARENT, Some(cgroup)) }
        .map_err(Error::at("make a process in the namespaces of another container"))
}

fn send_pid(pipe: &OwnedFd, made: &Result<i32, Failure>) -> ! {
    if let Ok(message) = serde_json::to_vec(made) {
        // Nothing told is told, too.
        let _ = rustix::io::write(pipe, &message);
    }
    process::exit()
}

/// The pid of the process that was made. What is written at once, and is short, is read at once.
fn receive_pid(pipe: &OwnedFd) -> Result<i32, Error> {
    let mut message = [0; LIMIT];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut message[..]))
        .map_err(Error::at("hear of a process"))?;
    let made: Result<i32, Failure> = serde_json::from_slice(&message[..count]).map_err(|_| died())?;
    made.map_err(Error::Reported)
}

fn died() -> Error {
    Error::EndedEarly { step: "join the namespaces of another container".into() }
}
