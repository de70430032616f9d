//! A command that ends with the VMM.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Most bytes of a command's message. The rest is read and dropped.
const MAX_MESSAGE: usize = 4096;

/// How a command ended.
#[derive(Debug)]
pub(super) struct CommandEnd {
    pub(super) status: ExitStatus,
    /// What it wrote to its standard error.
    pub(super) message: Vec<u8>,
}

/// Waits. Returns early, and true, if the VMM closes its end of `connection`: it has ended.
pub(super) fn vmm_ends_within(connection: &OwnedFd, time: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    // The end of the peer is reported without being asked for.
    let mut polled = [PollFd::new(connection.as_fd(), PollFlags::empty())];
    wait_for_any(&mut polled, timeout)?;
    Ok(has_ended(&polled[0]))
}

/// Runs a command whose standard error is a pipe to its end. If the VMM ends first, the command is killed, and there is no result.
///
/// # Errors
/// The command was not started, or a system call failed. No process is left.
pub(super) fn run(command: &mut Command, connection: &OwnedFd) -> io::Result<Option<CommandEnd>> {
    let mut child = command.spawn()?;
    let message = read_message(&mut child, connection);
    if !matches!(message, Ok(Some(_))) {
        // One that has ended meanwhile needs no signal.
        let _ = child.kill();
    }
    let status = child.wait()?;
    Ok(message?.map(|message| CommandEnd { status, message }))
}

/// Reads the command's standard error to its end. `None` if the VMM ends first.
fn read_message(child: &mut Child, connection: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut message = Vec::new();
    let Some(mut stderr) = child.stderr.take() else { return Ok(Some(message)) };
    let mut bytes = [0; MAX_MESSAGE];
    loop {
        let mut polled =
            [PollFd::new(stderr.as_fd(), PollFlags::POLLIN), PollFd::new(connection.as_fd(), PollFlags::empty())];
        wait_for_any(&mut polled, PollTimeout::NONE)?;
        if has_ended(&polled[1]) {
            return Ok(None);
        }
        let length = stderr.read(&mut bytes)?;
        if length == 0 {
            return Ok(Some(message));
        }
        let room = MAX_MESSAGE - message.len();
        message.extend_from_slice(&bytes[..length.min(room)]);
    }
}

fn wait_for_any(polled: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<()> {
    match poll(polled, timeout) {
        // A wait that a signal ends early is not repeated: whoever waits for an event asks again.
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn has_ended(connection: &PollFd<'_>) -> bool {
    connection.revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;
    use std::time::Instant;

    use vmm::helper::connection;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    #[test]
    fn a_command_runs_to_its_end() {
        let (_vmm, helper) = connection().unwrap();
        let end = run(&mut shell("echo why >&2; exit 3"), &helper).unwrap().unwrap();
        assert_eq!((end.status.code(), end.message.as_slice()), (Some(3), &b"why\n"[..]));
        let end = run(&mut shell("kill -9 $$"), &helper).unwrap().unwrap();
        assert_eq!(end.status.signal(), Some(9));
        let end = run(&mut shell("head -c 100000 /dev/zero >&2"), &helper).unwrap().unwrap();
        assert_eq!((end.status.code(), end.message.len()), (Some(0), MAX_MESSAGE));
        assert!(run(&mut Command::new("/does/not/exist"), &helper).is_err());
    }

    #[test]
    fn a_command_ends_with_the_vmm() {
        let (vmm, helper) = connection().unwrap();
        let begun = Instant::now();
        let running =
            std::thread::spawn(move || (run(&mut shell("exec sleep 100"), &helper).unwrap().is_none(), helper));
        std::thread::sleep(Duration::from_millis(50));
        drop(vmm);
        let (has_no_result, helper) = running.join().unwrap();
        assert!(has_no_result);
        assert!(vmm_ends_within(&helper, Duration::from_secs(100)).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(50));
    }

    #[test]
    fn a_wait_is_not_ended_by_a_task() {
        let (vmm, helper) = connection().unwrap();
        vmm::helper::send_task(vmm.as_fd(), vmm::helper::Task::CountOomKill).unwrap();
        let begun = Instant::now();
        assert!(!vmm_ends_within(&helper, Duration::from_millis(20)).unwrap());
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }
}
