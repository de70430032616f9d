//! Directories and control files of cgroups.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::files;

/// Bytes that one read of a control file requests.
const CHUNK: usize = 4096;

/// Enables every controller of the cgroup `directory` for its child cgroups.
pub(crate) fn enable_controllers(directory: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let available = rustix::fs::openat(directory, "cgroup.controllers", flags, Mode::empty())?;
    let available = read_all(available.as_fd())?;
    let enabled: Vec<_> = available.split_whitespace().map(|name| format!("+{name}")).collect();
    files::write_at(directory, "cgroup.subtree_control", enabled.join(" ").as_bytes())
}

/// Opens the directory of a cgroup.
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Reads a control file from its beginning to its end.
pub(crate) fn read_all(file: BorrowedFd<'_>) -> rustix::io::Result<String> {
    let mut content = Vec::new();
    let mut chunk = [0; CHUNK];
    loop {
        match rustix::io::pread(file, &mut chunk, content.len() as u64)? {
            0 => return String::from_utf8(content).map_err(|_| Errno::ILSEQ),
            count => content.extend_from_slice(&chunk[..count]),
        }
    }
}
