//! The messages of the guest's kernel.
//!
//! The console keeps the end of the output in a ring of fixed size, appends the output to the console log if there is one, and
//! searches it for the message that says why the guest ended.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};

/// Bytes of output that are kept.
const RING_SIZE: usize = 64 << 10;

/// Bytes after which a line is searched and written to the log, if it has not ended before.
const LINE_SIZE: usize = 1024;

/// Most bytes that one guest may append to its console log.
const LOG_LIMIT: u64 = 16 << 20;

/// Precedes the message of a kernel panic.
const PANIC: &str = "Kernel panic - not syncing: ";

/// Precedes the agent's fatal error. The agent prints the same words.
const AGENT: &str = "vmrt-agent gave up: ";

/// Receives what the guest's kernel prints.
#[derive(Debug, Default)]
pub struct Console {
    ring: VecDeque<u8>,
    line: Vec<u8>,
    fatal_message: Option<FatalMessage>,
    log: Option<Log>,
}

impl Console {
    /// A console that also appends the output to `log`.
    #[must_use]
    pub fn new(log: Option<File>) -> Self {
        Self { log: log.map(|file| Log { file, left: LOG_LIMIT }), ..Self::default() }
    }

    /// Why the guest ended, if it has printed that.
    #[must_use]
    pub fn fatal_message(&self) -> Option<&FatalMessage> {
        self.fatal_message.as_ref()
    }

    /// The last 64 KiB of output.
    #[must_use]
    pub fn tail(&self) -> String {
        let (first, second) = self.ring.as_slices();
        String::from_utf8_lossy(&[first, second].concat()).into_owned()
    }

    fn put(&mut self, byte: u8) {
        if self.ring.len() == RING_SIZE {
            self.ring.pop_front();
        }
        self.ring.push_back(byte);
        self.line.push(byte);
        if byte == b'\n' || self.line.len() == LINE_SIZE {
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        if self.fatal_message.is_none() {
            self.fatal_message = FatalMessage::find(&self.line);
        }
        if let Some(log) = &mut self.log
            && let Err(error) = log.append(&self.line)
        {
            tracing::warn!(%error, "cannot write the console log; it ends here");
            self.log = None;
        }
        self.line.clear();
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|byte| self.put(*byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The console log, with a limited size.
#[derive(Debug)]
struct Log {
    file: File,
    /// Bytes that may still be appended.
    left: u64,
}

impl Log {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if length > self.left {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        }
        self.left -= length;
        self.file.write_all(line)
    }
}

/// A message that the guest prints before it ends itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FatalMessage {
    /// The message of a kernel panic.
    Panic(String),
    /// The agent's fatal error. When the agent ends, a quiet kernel prints nothing about it.
    Agent(String),
}

impl FatalMessage {
    fn find(line: &[u8]) -> Option<Self> {
        let line = String::from_utf8_lossy(line);
        let after = |prefix| line.split_once(prefix).map(|(_, message)| message.trim_end().to_owned());
        after(PANIC).map(Self::Panic).or_else(|| after(AGENT).map(Self::Agent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_and_the_log_are_bounded() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut console = Console::new(Some(log.reopen().unwrap()));
        let line = format!("{}\n", "x".repeat(4095));
        for _ in 0..=(LOG_LIMIT / 4096) {
            console.write_all(line.as_bytes()).unwrap();
        }
        console.write_all(b"the end\n").unwrap();
        assert_eq!(console.ring.len(), RING_SIZE);
        assert!(console.tail().ends_with("the end\n"));
        assert_eq!(log.as_file().metadata().unwrap().len(), LOG_LIMIT);
    }
}
