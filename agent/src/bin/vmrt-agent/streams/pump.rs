//! Copying of bytes between pipes or terminals of processes and connections to the host.
//!
//! A [`Pump`] moves bytes in one direction. It buffers at most one chunk and reads again only when that is written, so
//! a slow reader delays the writer and memory use is bounded. Descriptors are watched edge-triggered, so a pump
//! continues until one of its sides would block.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// Bytes moved at once: the capacity of a pipe.
pub(crate) const CHUNK: usize = 64 << 10;

/// Chunks that one pump moves before the others get their turn.
const TURN: usize = 16;

/// Upper limit of the bytes in the kernel's buffers between the two ends of a terminal.
const TERMINAL_CAPACITY: u64 = 128 << 10;

/// The result of a pump's turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Progress {
    /// One of the sides would block. An event follows.
    Waiting,
    /// The pump can continue at once.
    More,
    /// The stream has ended.
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
    /// A pump from a process's pipe or terminal to a host connection, or in the opposite direction.
    pub(crate) fn new(from: OwnedFd, to: OwnedFd) -> Self {
        Self { from, to, pending: Vec::new(), drain: None }
    }

    /// The descriptor to watch for input.
    pub(crate) fn from(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }

    /// The descriptor to watch for output.
    pub(crate) fn to(&self) -> BorrowedFd<'_> {
        self.to.as_fd()
    }

    /// Records the number of undelivered bytes when the writer has ended, so that [`Pump::is_drained`] can become true
    /// even if other processes continue to write.
    pub(crate) fn begin_drain(&mut self) {
        let unread = match rustix::termios::isatty(&self.from) {
            true => TERMINAL_CAPACITY,
            false => rustix::io::ioctl_fionread(&self.from).unwrap_or(0),
        };
        self.drain = Some(unread + self.pending.len() as u64);
    }

    /// Whether all bytes that were undelivered at [`Pump::begin_drain`] are delivered.
    pub(crate) fn is_drained(&self) -> bool {
        self.drain == Some(0)
    }

    /// Moves bytes until a side blocks, the stream ends, or the turn is over. `chunk` is scratch space of [`CHUNK`]
    /// bytes.
    pub(crate) fn turn(&mut self, chunk: &mut [u8]) -> Progress {
        for _ in 0..TURN {
            match self.step(chunk) {
                Ok(true) => {}
                Ok(false) => return Progress::Finished,
                Err(Errno::AGAIN) => return Progress::Waiting,
                Err(Errno::INTR) => {}
                // A terminal without users returns EIO. Other errors end the stream too.
                Err(_) => return Progress::Finished,
            }
        }
        Progress::More
    }

    /// Does one write, or one read and a write of the result. False at the end of the stream.
    fn step(&mut self, chunk: &mut [u8]) -> rustix::io::Result<bool> {
        if !self.pending.is_empty() {
            let written = rustix::io::write(&self.to, &self.pending)?;
            self.pending.drain(..written);
            self.count_delivered(written);
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
        self.write_chunk(&chunk[..count])
    }

    fn write_chunk(&mut self, data: &[u8]) -> rustix::io::Result<bool> {
        let result = rustix::io::write(&self.to, data);
        let written = match result {
            Ok(written) => written,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err(error),
        };
        self.pending.extend_from_slice(&data[written..]);
        self.count_delivered(written);
        result.map(|_| true)
    }

    fn count_delivered(&mut self, count: usize) {
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
    fn output_reaches_the_host_and_the_end_of_the_stream_is_detected() {
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
    fn a_slow_reader_stops_the_pump_at_one_chunk_without_loss() {
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
    fn draining_completes_while_another_writer_continues() {
        let (mut process, mut pump, mut host) = output();
        let mut grandchild = process.try_clone().unwrap();
        process.write_all(b"all output").unwrap();
        pump.begin_drain();
        assert!(!pump.is_drained());
        grandchild.write_all(b"more later").unwrap();
        pump.turn(&mut [0; 4]);
        assert!(pump.is_drained());
        let mut text = [0; 10];
        host.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"all output");
    }

    #[test]
    fn a_closed_connection_ends_the_stream() {
        let (mut process, mut pump, host) = output();
        drop(host);
        process.write_all(b"lost").unwrap();
        assert_eq!(pump.turn(&mut [0; 16]), Progress::Finished);
    }
}
