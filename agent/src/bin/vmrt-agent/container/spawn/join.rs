//! Processes that are made in the namespaces of other containers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::Failure;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use rustix::thread::ThreadNameSpaceType;

use crate::error::Error;
use crate::sys::clone::{self, CLONE_PARENT, Cloned};
use crate::sys::process;

/// A kind of namespace, and a pidfd of the process whose namespace is shared.
pub(crate) type Shared<'a> = (ThreadNameSpaceType, BorrowedFd<'a>);

/// Maximum length of the helper's message, in bytes.
const LIMIT: usize = 4096;

/// Makes a process that shares the namespaces `shared`, joined in this order, and has new ones otherwise, as
/// [`clone::clone3`] does.
///
/// A process that joins a user namespace cannot leave it again, and namespaces that belong to it have to be made in it.
/// So a helper process in the agent's cgroup joins the namespaces, makes the process as its own sibling, sends its pid,
/// and ends.
///
/// # Safety
///
/// As for [`clone::clone3`]: the calling process must have only one thread.
pub(crate) unsafe fn clone_in_namespaces(
    shared: &[Shared<'_>],
    namespaces: u64,
    cgroup: BorrowedFd<'_>,
) -> Result<Cloned, Error> {
    let (receiver, sender) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(Error::at("make a pipe"))?;
    // SAFETY: the caller guarantees a single thread.
    match unsafe { clone::clone3(0, None) }.map_err(Error::at("make a process"))? {
        Cloned::Parent(_, helper) => {
            drop(sender);
            let pid = receive_pid(&receiver);
            rustix::process::waitid(WaitId::PidFd(helper.as_fd()), WaitIdOptions::EXITED)
                .map_err(Error::at("wait for a process"))?;
            let pid = pid?;
            let process = Pid::from_raw(pid).ok_or_else(helper_ended)?;
            let pidfd =
                rustix::process::pidfd_open(process, PidfdFlags::empty()).map_err(Error::at("find a process"))?;
            Ok(Cloned::Parent(pid, pidfd))
        }
        // SAFETY: a process that was just made has only one thread.
        Cloned::Child => match join(shared).and_then(|()| unsafe { make_sibling(namespaces, cgroup) }) {
            Ok(Cloned::Child) => Ok(Cloned::Child),
            Ok(Cloned::Parent(pid, _)) => send_pid(&sender, &Ok(pid)),
            Err(error) => send_pid(&sender, &Err(error.into())),
        },
    }
}

fn join(shared: &[Shared<'_>]) -> Result<(), Error> {
    let join = |(kind, process): &Shared<'_>| rustix::thread::move_into_thread_name_spaces(*process, *kind);
    shared.iter().try_for_each(join).map_err(Error::at("join the namespaces of another container"))
}

/// # Safety
///
/// As for [`clone::clone3`].
unsafe fn make_sibling(namespaces: u64, cgroup: BorrowedFd<'_>) -> Result<Cloned, Error> {
    // SAFETY: the caller guarantees a single thread.
    unsafe { clone::clone3(namespaces | CLONE_PARENT, Some(cgroup)) }
        .map_err(Error::at("make a process in the namespaces of another container"))
}

fn send_pid(pipe: &OwnedFd, made: &Result<i32, Failure>) -> ! {
    if let Ok(message) = serde_json::to_vec(made) {
        // The agent takes the end of the pipe for a failure, too.
        let _ = rustix::io::write(pipe, &message);
    }
    process::exit()
}

/// The pid of the new process. The message is short and written in one call, so one read receives all of it.
fn receive_pid(pipe: &OwnedFd) -> Result<i32, Error> {
    let mut message = [0; LIMIT];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut message[..]))
        .map_err(Error::at("receive the pid of a process"))?;
    let made: Result<i32, Failure> = serde_json::from_slice(&message[..count]).map_err(|_| helper_ended())?;
    made.map_err(Error::Reported)
}

fn helper_ended() -> Error {
    Error::EndedEarly { step: "join the namespaces of another container".into() }
}
