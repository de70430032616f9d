//! Reading and writing descriptors that were handed to the VMM, without ever blocking and without touching their flags.
//!
//! The open file description behind a passed descriptor is shared with other processes (a shell's terminal, an engine's
//! log pipe), so `O_NONBLOCK` must not be set on it. Pipes and pseudo-terminals are opened a second time through
//! `/proc/self/fd`, which makes a description of our own that is non-blocking; sockets have `MSG_DONTWAIT`; regular
//! files are always ready. Whatever else there is gets polled before each small transfer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::stat::{Mode, SFlag, fstat, major};

/// What a pipe or terminal takes without blocking once it polls as writable (`PIPE_BUF`).
const POLLED_TRANSFER: usize = 4096;

/// Major device numbers of the slave ends of Unix98 pseudo-terminals.
const PTS_MAJORS: std::ops::RangeInclusive<u64> = 136..=143;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Direction {
    /// From the descriptor to the guest.
    Read,
    /// From the guest to the descriptor.
    Write,
}

impl Direction {
    fn access(self) -> OFlag {
        match self {
            Self::Read => OFlag::O_RDONLY,
            Self::Write => OFlag::O_WRONLY,
        }
    }

    fn epoll(self) -> EpollFlags {
        match self {
            Self::Read => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP,
            Self::Write => EpollFlags::EPOLLOUT,
        }
    }

    fn poll(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::POLLIN,
            Self::Write => PollFlags::POLLOUT,
        }
    }
}

/// Tells when descriptors become ready, edge-triggered, and opens those that can be opened again.
#[derive(Debug)]
pub(super) struct Watcher {
    epoll: Epoll,
    /// `/proc/self/fd`, opened once so that it works when the VMM has locked itself in; absent where there is no procfs.
    proc_fds: Option<OwnedFd>,
}

impl Watcher {
    pub(super) fn new() -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc_fds = nix::fcntl::open("/proc/self/fd", flags, Mode::empty()).ok();
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, proc_fds })
    }

    /// Calls `ready` with the token and the events of each descriptor that changed.
    pub(super) fn dispatch(&self, mut ready: impl FnMut(u64, EpollFlags)) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let count = match self.epoll.wait(&mut events, 0_u8) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            for event in &events[..count] {
                ready(event.data(), event.events());
            }
            if count < events.len() {
                return Ok(());
            }
        }
    }

    fn reopen(&self, fd: &OwnedFd, direction: Direction) -> Option<OwnedFd> {
        let flags = direction.access() | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let name = fd.as_raw_fd().to_string();
        openat(self.proc_fds.as_ref()?, name.as_str(), flags, Mode::empty()).ok()
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// Reads and writes never block for another process's sake.
    Ready,
    /// The description is ours, and non-blocking.
    NonBlocking,
    Socket,
    /// Only polling tells whether a small transfer would block.
    Polled,
}

/// One descriptor, used in one direction.
#[derive(Debug)]
pub(super) struct HostFd {
    fd: OwnedFd,
    kind: Kind,
    direction: Direction,
    watcher: Arc<Watcher>,
}

impl HostFd {
    /// Takes a descriptor over; its readiness is told under `token`.
    pub(super) fn new(fd: OwnedFd, direction: Direction, token: u64, watcher: &Arc<Watcher>) -> io::Result<Self> {
        let (fd, mut kind) = Self::classify(fd, direction, watcher)?;
        if kind != Kind::Ready {
            let event = EpollEvent::new(direction.epoll() | EpollFlags::EPOLLET, token);
            match watcher.epoll.add(&fd, event) {
                Err(Errno::EPERM) => kind = Kind::Ready,
                result => result?,
            }
        }
        Ok(Self { fd, kind, direction, watcher: Arc::clone(watcher) })
    }

    fn classify(fd: OwnedFd, direction: Direction, watcher: &Watcher) -> io::Result<(OwnedFd, Kind)> {
        let stat = fstat(&fd)?;
        let file_type = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let again = match file_type {
            SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFBLK => return Ok((fd, Kind::Ready)),
            SFlag::S_IFSOCK => return Ok((fd, Kind::Socket)),
            // Opening other devices again may have effects: a new terminal pair, a tape that rewinds.
            SFlag::S_IFCHR if !PTS_MAJORS.contains(&major(stat.st_rdev)) => None,
            _ => watcher.reopen(&fd, direction),
        };
        Ok(match again {
            Some(own) => (own, Kind::NonBlocking),
            None => (fd, Kind::Polled),
        })
    }

    /// Reads up to `len` bytes to `to`; 0 is the end of file, `WouldBlock` means that the watcher will tell.
    ///
    /// # Safety
    /// `to` points to `len` bytes of memory that may be written, by others too.
    pub(super) unsafe fn read(&self, to: *mut u8, len: usize) -> io::Result<usize> {
        let len = self.transfer_size(len)?;
        let fd = self.fd.as_raw_fd();
        retry(|| match self.kind {
            // SAFETY: the caller vouches for the memory, and `transfer_size` only makes `len` smaller.
            Kind::Socket => unsafe { libc::recv(fd, to.cast(), len, libc::MSG_DONTWAIT) },
            // SAFETY: as above.
            _ => unsafe { libc::read(fd, to.cast(), len) },
        })
    }

    /// Writes some of `parts`, in order; `WouldBlock` means that the watcher will tell.
    ///
    /// # Safety
    /// `parts` are memory that may be read; others may write it meanwhile.
    pub(super) unsafe fn write(&self, parts: &[libc::iovec]) -> io::Result<usize> {
        let fd = self.fd.as_raw_fd();
        let count = libc::c_int::try_from(parts.len()).unwrap_or(libc::c_int::MAX);
        match (self.kind, parts) {
            (Kind::Socket, _) => {
                // SAFETY: zero is a valid value for every field.
                let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
                message.msg_iov = parts.as_ptr().cast_mut();
                message.msg_iovlen = parts.len();
                // SAFETY: the message has no address and no control data; the caller vouches for its parts.
                retry(|| unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
            }
            (Kind::Polled, [first, ..]) => {
                let len = self.transfer_size(first.iov_len)?;
                // SAFETY: the caller's, and `transfer_size` only makes it smaller.
                retry(|| unsafe { libc::write(fd, first.iov_base, len) })
            }
            // SAFETY: the caller's.
            _ => retry(|| unsafe { libc::writev(fd, parts.as_ptr(), count) }),
        }
    }

    /// Tells a socket's other side that no more will come.
    pub(super) fn shutdown_write(&self) {
        // One whose other side is gone has nobody to be told.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
    }

    fn transfer_size(&self, len: usize) -> io::Result<usize> {
        if self.kind != Kind::Polled {
            return Ok(len);
        }
        match poll(&mut [PollFd::new(self.fd.as_fd(), self.direction.poll())], PollTimeout::ZERO)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(len.min(POLLED_TRANSFER)),
        }
    }
}

impl Drop for HostFd {
    fn drop(&mut self) {
        // Closing is not enough: other processes may keep the description open, and epoll watches descriptions.
        // One that was never watched makes this fail, which changes nothing.
        let _ = self.watcher.epoll.delete(&self.fd);
    }
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
