//! The terminal of a process: a pseudo-terminal of the container's devpts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agent::TerminalSize;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::container::rootfs::mount_trees;
use crate::container::rootfs::paths::{self, Missing};
use crate::error::Error;

/// Both ends of a pseudo-terminal.
pub(crate) struct Terminal {
    /// The agent's end.
    pub(crate) master: OwnedFd,
    /// The process's end, its standard streams.
    pub(crate) slave: OwnedFd,
}

impl Terminal {
    /// Opens a new pseudo-terminal in the container whose root is `root`. With `no_carriage_return` the output gets no carriage
    /// returns.
    pub(crate) fn open(
        root: BorrowedFd<'_>,
        size: Option<TerminalSize>,
        no_carriage_return: bool,
    ) -> Result<Self, Error> {
        let master = open_master(root).map_err(Error::at("open terminal /dev/ptmx"))?;
        if let Some(size) = size {
            resize(master.as_fd(), size).map_err(Error::at("set terminal size"))?;
        }
        rustix::pty::unlockpt(&master).map_err(Error::at("unlock terminal"))?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(Error::at("open terminal"))?;
        if no_carriage_return {
            disable_carriage_returns(slave.as_fd()).map_err(Error::at("set the terminal's mode"))?;
        }
        Ok(Self { master, slave })
    }

    /// Makes the mount point for [`Self::mount_console`] if it is missing.
    pub(crate) fn make_console(root: BorrowedFd<'_>) -> Result<(), Error> {
        open_console(root).map(drop).map_err(Error::at("make /dev/console"))
    }

    /// Mounts the terminal on `/dev/console`.
    pub(crate) fn mount_console(&self, root: BorrowedFd<'_>) -> Result<(), Error> {
        let mount = || {
            let place = open_console(root)?;
            let slave = mount_trees::clone_tree_at(self.slave.as_fd(), false)?;
            mount_trees::attach(slave.as_fd(), place.as_fd())
        };
        mount().map_err(Error::at("mount terminal on /dev/console"))
    }

    /// Makes it the controlling terminal of the caller, a session leader.
    pub(crate) fn set_controlling(&self) -> Result<(), Error> {
        rustix::process::ioctl_tiocsctty(&self.slave).map_err(Error::at("make the terminal the controlling one"))
    }
}

/// Opens `/dev/ptmx`. Without a mount on `/dev` that path belongs to the image, so the device number is checked.
fn open_master(root: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
    let place = paths::open(root, Path::new("/dev/ptmx"), OFlags::PATH)?;
    let stat = rustix::fs::fstat(&place)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !is_device || stat.st_rdev != rustix::fs::makedev(5, 2) {
        return Err(Errno::NODEV);
    }
    paths::open(root, Path::new("/dev/ptmx"), flags)
}

fn open_console(root: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    paths::open_or_make(root, Path::new("/dev/console"), Missing::File)
}

fn disable_carriage_returns(terminal: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut mode = tcgetattr(terminal)?;
    mode.output_modes.remove(OutputModes::ONLCR);
    tcsetattr(terminal, OptionalActions::Now, &mode)
}

/// Sets the size of a terminal, at either end.
pub(crate) fn resize(terminal: BorrowedFd<'_>, size: TerminalSize) -> rustix::io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size)
}
