//! Copying between processes' pipes and terminals and the streams to the host.
//!
//! A [`Pump`] moves bytes one way. It holds at most one chunk: it reads again only when the last chunk is written, so
//! a slow reader slows the writer down and costs no memory. Descriptors are watched edge-triggered, and a pump always
//! goes on until one of its sides would block.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// Bytes moved at once; as much as a pipe holds.
pub(crate) const CHUNK: usize = 64 << 10;

/// Chunks one pump moves before the others have their turn.
const TURN: usize = 16;

/// The most a terminal can hold between its writer and its reader, in the kernel's own buffers.
const TERMINAL_CAPACITY: u64 = 128 << 10;

/// How a pump's turn ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Progress {
    /// One of the sides would block: an event will come.
    Waiting,
    /// There is more to do at once.
    More,
    /// Nothing will ever come or go again.
    Finished,
}

/// One direction of a stream. Both descriptors are non-blocking.
pub(crate) struct Pump {
    from: OwnedFd,
    to: OwnedFd,
    pending: Vec<u8>,
    drain: Option<u64>,
}

impl Pump {
    /// From a process's pipe or terminal to a host connection, or the other way round.
    pub(crate) fn new(from: OwnedFd, to: OwnedFd) -> Self {
        Self { from, to, pending: Vec::new(), drain: None }
    }

    /// The descriptor to watch for being readable.
    pub(crate) fn from(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }

    /// The descriptor to watch for being writable.
    pub(crate) fn to(&self) -> BorrowedFd<'_> {
        self.to.as_fd()
    }

    /// The writer is dead: remembers how much it left behind, so that [`Pump::is_drained`] can tell when that is gone
    /// even if others go on writing.
    pub(crate) fn begin_drain(&mut self) {
        let unread = match rustix::termios::isatty(&self.from) {
            true => TERMINAL_CAPACITY,
            false => rustix::io::ioctl_fionread(&self.from).unwrap_or(0),
        };
        self.drain = Some(unread + self.pending.len() as u64);
    }

    /// Everything that was there at [`Pump::begin_drain`] has been handed to the host.
    pub(crate) fn is_drained(&self) -> bool {
        self.drain == Some(0)
    }

    /// Moves what can be moved. `chunk` is scratch space of [`CHUNK`] bytes.
    pub(crate) fn turn(&mut self, chunk: &mut [u8]) -> Progress {
        for _ in 0..TURN {
            match self.step(chunk) {
                Ok(true) => {}
                Ok(false) => return Progress::Finished,
                Err(Errno::AGAIN) => return Progress::Waiting,
                Err(Errno::INTR) => {}
                // A terminal whose last user is gone answers EIO; other errors end a stream just as well.
                Err(_) => return Progress::Finished,
            }
        }
        Progress::More
    }

    /// One write, or one read and the write of it. False at the end of the stream.
    fn step(&mut self, chunk: &mut [u8]) -> rustix::io::Result<bool> {
        if !self.pending.is_empty() {
            let written = rustix::io::write(&self.to, &self.pending)?;
            self.pending.drain(..written);
            self.note_moved(written);
            return Ok(true);
        }
        let count = match rustix::io::read(&self.from, &mut *chunk) {
            Err(Errno::AGAIN) => {
                self.drain = self.drain.map(|_| 0);
                return Err(Errno::AGAIN);
            }
            result => result?,
        };
        if count == 0 {
            return Ok(false);
        }
        self.pass_on(&chunk[..count])
    }

    fn pass_on(&mut self, data: &[u8]) -> rustix::io::Result<bool> {
        let result = rustix::io::write(&self.to, data);
        let written = match result {
            Ok(written) => written,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err(error),
        };
        self.pending.extend_from_slice(&data[written..]);
        self.note_moved(written);
        result.map(|_| true)
    }

    fn note_moved(&mut self, count: usize) {
        self.drain = self.drain.map(|left| left.saturating_sub(count as u64));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn output() -> (File, Pump, UnixStream) {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (write.into(), Pump::new(read, near.into()), far)
    }

    #[test]
    fn output_reaches_the_host_and_the_end_is_noticed() {
        let (mut process, mut pump, mut host) = output();
        process.write_all(b"hello").unwrap();
        assert_eq!(pump.turn(&mut [0; 16]), Progress::Waiting);
        drop(process);
        assert_eq!(pump.turn(&mut [0; 16]), Progress::Finished);
        drop(pump);
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_slow_reader_stops_the_pump_at_one_chunk_and_nothing_is_lost() {
        let (mut process, mut pump, mut host) = output();
        let (mut sent, mut refused) = (0, 0);
        let mut chunk = vec![0; CHUNK];
        while refused < 3 {
            match process.write(&[7; 4096]) {
                Ok(count) => (sent, refused) = (sent + count, 0),
                Err(_) => {
                    refused += 1;
                    pump.turn(&mut chunk);
                }
            }
        }
        assert!(pump.pending.len() <= CHUNK);
        drop(process);
        host.set_nonblocking(true).unwrap();
        let (mut got, mut ended) = (0, false);
        while !ended {
            ended = pump.turn(&mut chunk) == Progress::Finished;
            while let Ok(count @ 1..) = host.read(&mut chunk) {
                got += count;
            }
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn draining_ends_though_another_writer_goes_on() {
        let (mut process, mut pump, mut host) = output();
        let mut grandchild = process.try_clone().unwrap();
        process.write_all(b"last words").unwrap();
        pump.begin_drain();
        assert!(!pump.is_drained());
        grandchild.write_all(b"still here").unwrap();
        pump.turn(&mut [0; 4]);
        assert!(pump.is_drained());
        let mut text = [0; 10];
        host.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"last words");
    }

    #[test]
    fn a_reader_that_left_ends_the_stream() {
        let (mut process, mut pump, host) = output();
        drop(host);
        process.write_all(b"into the void").unwrap();
        assert_eq!(pump.turn(&mut [0; 16]), Progress::Finished);
    }
}
