//! Descriptors that a process got from its caller without being told of them.

use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::libc;

/// The first descriptor that is no standard stream.
const FIRST: RawFd = 3;

/// Lets every descriptor but the standard streams end at `execve`. Safe between `fork` and `execve`.
pub(crate) fn close_all_on_exec() -> nix::Result<()> {
    close_range(FIRST, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor but the standard streams and those in `keep`.
///
/// # Safety
/// Nothing in this process uses, or will close, a descriptor that is not kept.
pub(crate) unsafe fn close_others(mut keep: Vec<RawFd>) -> nix::Result<()> {
    keep.sort_unstable();
    let mut first = FIRST;
    for fd in keep.into_iter().filter(|fd| *fd >= FIRST) {
        if first < fd {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX, 0)
}

fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> nix::Result<()> {
    // SAFETY: takes no pointer. That nothing uses what it closes is promised by the callers; with
    // CLOSE_RANGE_CLOEXEC it closes nothing in this process.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::{AsRawFd, IntoRawFd};

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    #[test]
    fn only_what_is_kept_stays_open() {
        let kept = [(); 2].map(|()| fs::File::open("/dev/null").unwrap());
        let other = fs::File::open("/dev/null").unwrap().into_raw_fd();
        // SAFETY: the child makes system calls only, and ends without running anything of its parent's.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let keep = vec![kept[1].as_raw_fd(), kept[0].as_raw_fd(), 0];
                // SAFETY: the child uses nothing but what is kept.
                let closed = unsafe { close_others(keep) }.is_ok();
                // SAFETY: asks only whether a descriptor is open.
                let open = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
                let right = closed && open(kept[0].as_raw_fd()) && open(kept[1].as_raw_fd()) && !open(other);
                // SAFETY: ends the child at once, without the parent's exit handlers.
                unsafe { libc::_exit(i32::from(!right)) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            }
        }
        nix::unistd::close(other).unwrap();
    }
}
