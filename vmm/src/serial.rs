//! COM1 and what comes out of it: the guest kernel's messages.
//!
//! The guest never reads from it and gets no interrupts: its kernel prints by polling (`earlyprintk`). What it prints is
//! kept in a bounded ring, written to the console log where one was asked for, and searched for what a guest says before it goes down.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

/// How much of the end of the output is kept.
const RING_SIZE: usize = 64 << 10;

/// Bytes of a line that are looked at, and collected before they are written to the log.
const LINE_SIZE: usize = 1024;

/// Most bytes one guest may add to its console log.
const LOG_LIMIT: u64 = 16 << 20;

const PANIC: &str = "Kernel panic - not syncing: ";
const AGENT: &str = "vmrt-agent gave up: ";

/// An interrupt line that leads nowhere.
struct Unwired;

impl Trigger for Unwired {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The serial port, as the guest sees it.
pub struct Com1(Serial<Unwired, NoEvents, Console>);

impl Com1 {
    /// A serial port that prints to `console`.
    #[must_use]
    pub fn new(console: Console) -> Self {
        Self(Serial::new(Unwired, console))
    }

    /// Reads register `offset`.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// Writes register `offset`. Neither the console nor the missing interrupt can fail.
    pub fn write(&mut self, offset: u8, value: u8) {
        if let Err(error) = self.0.write(offset, value) {
            tracing::debug!(%error, "the guest wrote to the serial port in a mode it does not have");
        }
    }

    /// What was printed.
    #[must_use]
    pub fn console(&self) -> &Console {
        self.0.writer()
    }
}

/// Collects what the guest's kernel prints.
#[derive(Debug, Default)]
pub struct Console {
    ring: VecDeque<u8>,
    line: Vec<u8>,
    last_words: Option<LastWords>,
    log: Option<Log>,
}

impl Console {
    /// A console that also appends what is printed to `log`.
    #[must_use]
    pub fn new(log: Option<File>) -> Self {
        Self { log: log.map(|file| Log { file, left: LOG_LIMIT }), ..Self::default() }
    }

    /// Why the guest went down, once it has said so.
    #[must_use]
    pub fn last_words(&self) -> Option<&LastWords> {
        self.last_words.as_ref()
    }

    /// The last 64 KiB printed.
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
        if self.last_words.is_none() {
            self.last_words = LastWords::find(&self.line);
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

/// A file with an end.
#[derive(Debug)]
struct Log {
    file: File,
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

/// What a guest prints before it goes down.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LastWords {
    /// The message of a kernel panic.
    Panic(String),
    /// What the agent could not do. A quiet kernel prints nothing else of it.
    Agent(String),
}

impl LastWords {
    /// The last words in `line`, if they are in it.
    fn find(line: &[u8]) -> Option<Self> {
        let line = String::from_utf8_lossy(line);
        let behind = |words| line.split_once(words).map(|(_, message)| message.trim_end().to_owned());
        behind(PANIC).map(Self::Panic).or_else(|| behind(AGENT).map(Self::Agent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u8 = 0;
    const LINE_STATUS: u8 = 5;

    fn print(com1: &mut Com1, text: &str) {
        text.bytes().for_each(|byte| com1.write(DATA, byte));
    }

    #[test]
    fn the_transmitter_is_always_ready() {
        assert_eq!(Com1::new(Console::new(None)).read(LINE_STATUS) & 0x60, 0x60);
    }

    #[test]
    fn a_panic_is_found_behind_its_time_stamp() {
        let mut com1 = Com1::new(Console::new(None));
        print(&mut com1, "[    0.1] booting\r\n[    0.2] Kernel panic - not syncing: VFS: Unable to mount root fs");
        assert_eq!(com1.console().last_words(), None, "a line counts when it is complete");
        print(&mut com1, "\r\n[    0.3] Kernel panic - not syncing: another\n");
        assert_eq!(com1.console().last_words(), Some(&LastWords::Panic("VFS: Unable to mount root fs".into())));
    }

    #[test]
    fn only_the_end_of_a_flood_is_kept_and_logged_up_to_a_limit() {
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

    #[test]
    fn an_agent_that_gives_up_is_heard_and_one_that_warns_is_not() {
        let mut com1 = Com1::new(Console::new(None));
        print(&mut com1, "[    0.1] vmrt-agent: cannot set the clock\n");
        assert_eq!(com1.console().last_words(), None);
        print(&mut com1, "[    0.2] vmrt-agent gave up: no vsock\n");
        assert_eq!(com1.console().last_words(), Some(&LastWords::Agent("no vsock".into())));
    }
}
