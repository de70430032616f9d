//! Open file descriptions that no other process has.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, major};

/// Major device numbers of the slave ends of Unix98 pseudo-terminals.
const PTS_MAJORS: std::ops::RangeInclusive<u64> = 136..=143;

/// Opens the pipe or pseudo-terminal behind `fd` again, so that the VMM can use it without blocking: the description behind `fd` is
/// shared with other processes, which may not expect `O_NONBLOCK`. `access` is `O_RDONLY` or `O_WRONLY`. For other files, and
/// where the caller may not open the file, the result is a duplicate of `fd`.
///
/// # Errors
/// No file descriptor is left.
pub(crate) fn own_description(fd: BorrowedFd, access: OFlag) -> io::Result<OwnedFd> {
    let stat = fstat(fd)?;
    let can_be_opened_again = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFIFO => true,
        // Opening other devices again may have side effects: a new terminal pair, a rewound tape.
        SFlag::S_IFCHR => PTS_MAJORS.contains(&major(stat.st_rdev)),
        _ => false,
    };
    let flags = access | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let opened = can_be_opened_again.then(|| open(path.as_str(), flags, Mode::empty()).ok());
    opened.flatten().map_or_else(|| fd.try_clone_to_owned(), Ok)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    fn is_non_blocking(fd: impl AsFd) -> bool {
        OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
    }

    #[test]
    fn a_pipe_is_opened_again_and_its_shared_description_stays_as_it_is() {
        let (reader, writer) = io::pipe().unwrap();
        let own = own_description(writer.as_fd(), OFlag::O_WRONLY).unwrap();
        assert!(is_non_blocking(&own) && !is_non_blocking(&writer) && !is_non_blocking(&reader));
    }

    #[test]
    fn other_files_are_duplicated() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let own = own_description(null.as_fd(), OFlag::O_RDONLY).unwrap();
        assert!(!is_non_blocking(&own));
    }
}
