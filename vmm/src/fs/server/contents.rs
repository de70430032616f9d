//! Changes of a file's contents, and what becomes of its setuid and setgid bits.
//!
//! The host's kernel clears both bits when contents change, unless the thread has `CAP_FSETID` in the initial user namespace. No
//! thread of a VMM in a user namespace has it, so the server sets the bits again if the guest's process may keep them.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, CWD, Mode};
use rustix::io::Errno;

use crate::fs::tables::inode::stat_fd;
use crate::fs::worker::Worker;
use crate::fs::worker::proc_fds::fd_name;

/// Runs `change`, which changes the contents of `file`. If `kill` is set, setuid and setgid are cleared, otherwise they are kept.
pub(super) fn change_contents<T>(
    worker: &mut Worker,
    kill: bool,
    file: &impl AsFd,
    change: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let before = mode(file)?;
    if !before.intersects(Mode::SUID | Mode::SGID) {
        return change();
    }
    if kill {
        return worker.without_fsetid(true, change)?;
    }
    let result = change()?;
    if mode(file)? != before {
        rustix::fs::chmodat(CWD, fd_name(file), before, AtFlags::empty())?;
    }
    Ok(result)
}

fn mode(file: &impl AsFd) -> Result<Mode, Errno> {
    Ok(Mode::from_raw_mode(stat_fd(file)?.stx_mode.into()))
}
