//! File descriptors that a process inherited from its caller.

use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::libc;

/// The first descriptor after the standard streams.
const FIRST: RawFd = 3;

/// Sets close-on-exec on every descriptor but the standard streams. It makes one system call, so it may be called between `fork`
/// and `execve`.
pub(crate) fn close_all_on_exec() -> nix::Result<()> {
    close_range(FIRST, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor but the standard streams and those in `excluded`.
///
/// # Safety
/// Nothing in this process uses, or will close, a descriptor that is not excluded.
pub(crate) unsafe fn close_all_except(mut excluded: Vec<RawFd>) -> nix::Result<()> {
    excluded.sort_unstable();
    let mut first = FIRST;
    for fd in excluded.into_iter().filter(|fd| *fd >= FIRST) {
        if first < fd {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX, 0)
}

fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> nix::Result<()> {
    // SAFETY: the call takes no pointer. The callers guarantee that nothing uses a closed descriptor; with
    // CLOSE_RANGE_CLOEXEC nothing is closed in this process.
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
    fn only_excluded_descriptors_stay_open() {
        let kept = [(); 2].map(|()| fs::File::open("/dev/null").unwrap());
        let other = fs::File::open("/dev/null").unwrap().into_raw_fd();
        // SAFETY: the child makes system calls only and ends with `_exit`.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let excluded = vec![kept[1].as_raw_fd(), kept[0].as_raw_fd(), 0];
                // SAFETY: the child uses only the excluded descriptors.
                let closed = unsafe { close_all_except(excluded) }.is_ok();
                // SAFETY: F_GETFD takes no pointer and changes nothing.
                let open = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
                let correct = closed && open(kept[0].as_raw_fd()) && open(kept[1].as_raw_fd()) && !open(other);
                // SAFETY: `_exit` ends the child without running exit handlers.
                unsafe { libc::_exit(i32::from(!correct)) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            }
        }
        nix::unistd::close(other).unwrap();
    }
}
