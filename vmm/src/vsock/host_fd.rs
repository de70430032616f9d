//! Reads and writes of descriptors that another process passed to the VMM. They never block, and they never change the
//! descriptors' flags.
//!
//! The open file description behind a passed descriptor is shared with other processes (a shell's terminal, an engine's
//! log pipe), so `O_NONBLOCK` must not be set on it. The runtime therefore opens pipes and pseudo-terminals again, which creates a
//! separate non-blocking description. Sockets are used with `MSG_DONTWAIT`. Regular files are always ready. Other files are
//! polled before each small transfer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::stat::{SFlag, fstat, major};

/// The number of bytes that a pipe or terminal takes without blocking after it polls as writable (`PIPE_BUF`).
const POLLED_TRANSFER: usize = 4096;

/// Major device numbers of the slave ends of Unix98 pseudo-terminals.
const PTS_MAJORS: std::ops::RangeInclusive<u64> = 136..=143;

/// The direction of a transfer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Direction {
    /// From the descriptor to the guest.
    Read,
    /// From the guest to the descriptor.
    Write,
}

impl Direction {
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

/// Reports when descriptors become ready (edge-triggered epoll).
#[derive(Debug)]
pub(super) struct Watcher {
    epoll: Epoll,
}

impl Watcher {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Calls `ready` with the token and the events of descriptors whose readiness changed. The watcher stays readable
    /// if there are more of them than one call handles.
    pub(super) fn dispatch(&self, mut ready: impl FnMut(u64, EpollFlags)) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 32];
        let count = match self.epoll.wait(&mut events, 0_u8) {
            Err(Errno::EINTR) => 0,
            result => result?,
        };
        for event in &events[..count] {
            ready(event.data(), event.events());
        }
        Ok(())
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// Reads and writes never wait for another process.
    Ready,
    /// The description belongs to this process only and is non-blocking.
    NonBlocking,
    Socket,
    /// Only `poll` tells whether a small transfer would block.
    Polled,
}

/// A descriptor that is used in one direction.
#[derive(Debug)]
pub(super) struct HostFd {
    fd: OwnedFd,
    kind: Kind,
    direction: Direction,
    watcher: Arc<Watcher>,
}

fn classify(fd: &OwnedFd) -> io::Result<Kind> {
    let stat = fstat(fd)?;
    let is_non_blocking = || {
        let flags = fcntl(fd, FcntlArg::F_GETFL)?;
        Ok::<_, io::Error>(OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK))
    };
    Ok(match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFBLK => Kind::Ready,
        SFlag::S_IFSOCK => Kind::Socket,
        // Only these can be opened again without side effects, so another file's flags are those of a shared description.
        SFlag::S_IFIFO if is_non_blocking()? => Kind::NonBlocking,
        SFlag::S_IFCHR if PTS_MAJORS.contains(&major(stat.st_rdev)) && is_non_blocking()? => Kind::NonBlocking,
        _ => Kind::Polled,
    })
}

impl HostFd {
    /// Takes ownership of a descriptor. The watcher reports its readiness under `token`.
    pub(super) fn new(fd: OwnedFd, direction: Direction, token: u64, watcher: &Arc<Watcher>) -> io::Result<Self> {
        let mut kind = classify(&fd)?;
        if kind != Kind::Ready {
            let event = EpollEvent::new(direction.epoll() | EpollFlags::EPOLLET, token);
            match watcher.epoll.add(&fd, event) {
                Err(Errno::EPERM) => kind = Kind::Ready,
                result => result?,
            }
        }
        Ok(Self { fd, kind, direction, watcher: Arc::clone(watcher) })
    }

    /// Reads up to `len` bytes to `to`. 0 is the end of file. `WouldBlock` means that the watcher will report
    /// readiness.
    ///
    /// # Safety
    /// `to` points to `len` bytes of writable memory, which others may write at the same time.
    pub(super) unsafe fn read(&self, to: *mut u8, len: usize) -> io::Result<usize> {
        let len = self.transfer_size(len)?;
        let fd = self.fd.as_raw_fd();
        retry(|| match self.kind {
            // SAFETY: the caller guarantees that the memory is writable, and `transfer_size` only makes `len` smaller.
            Kind::Socket => unsafe { libc::recv(fd, to.cast(), len, libc::MSG_DONTWAIT) },
            // SAFETY: as above.
            _ => unsafe { libc::read(fd, to.cast(), len) },
        })
    }

    /// Writes a part of `parts`, in order. `WouldBlock` means that the watcher will report readiness.
    ///
    /// # Safety
    /// `parts` describe readable memory, which others may write at the same time.
    pub(super) unsafe fn write(&self, parts: &[libc::iovec]) -> io::Result<usize> {
        let fd = self.fd.as_raw_fd();
        let count = libc::c_int::try_from(parts.len()).unwrap_or(libc::c_int::MAX);
        match (self.kind, parts) {
            (Kind::Socket, _) => {
                // SAFETY: all zeros is a valid value of every field.
                let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
                message.msg_iov = parts.as_ptr().cast_mut();
                message.msg_iovlen = parts.len();
                // SAFETY: the message has no address and no control data, and the caller guarantees that its parts are
                // readable.
                retry(|| unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
            }
            (Kind::Polled, [first, ..]) => {
                let len = self.transfer_size(first.iov_len)?;
                // SAFETY: the caller guarantees that `parts` are readable, and `transfer_size` only makes the length
                // smaller.
                retry(|| unsafe { libc::write(fd, first.iov_base, len) })
            }
            // SAFETY: the caller guarantees that `parts` are readable.
            _ => retry(|| unsafe { libc::writev(fd, parts.as_ptr(), count) }),
        }
    }

    /// Shuts down the write direction of a socket.
    pub(super) fn shutdown_write(&self) {
        // The call fails if the peer has closed the socket, and then there is nothing to do.
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
        // Closing the descriptor is not enough: epoll watches open file descriptions, which other processes may keep
        // open. The call fails for a descriptor that was never watched, and then there is nothing to do.
        let _ = self.watcher.epoll.delete(&self.fd);
    }
}

/// A host descriptor and its readiness.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) fd: HostFd,
    /// False after a call would have blocked, until the watcher reports readiness.
    pub(super) ready: bool,
}

impl Endpoint {
    /// Watches `fd`. `key` identifies the connection, see [`super::backend::Backend`].
    pub(super) fn new(
        fd: Option<OwnedFd>,
        direction: Direction,
        key: u64,
        watcher: &Arc<Watcher>,
    ) -> io::Result<Option<Self>> {
        let Some(fd) = fd else { return Ok(None) };
        let token = key << 1 | u64::from(direction == Direction::Write);
        Ok(Some(Self { fd: HostFd::new(fd, direction, token, watcher)?, ready: true }))
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
