//! The log of the program. Guests cause lines and choose parts of their texts, so everything about the log is bounded.
//!
//! - The file has a [`BUDGET`]. When it is used up, only errors are written, [`RESERVED_LINES`] for each place in the code, so that
//!   the cause of the end is recorded.
//! - A line has at most [`MAX_LINE`] bytes, and no control characters.
//! - A place in the code that logs (a *callsite* of `tracing`) writes at most [`BURST`] lines at once, and then one each
//!   [`INTERVAL`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::writer::OptionalWriter;

use super::LogFormat;
use crate::escape_control_characters;

/// Bytes that the file may have before only errors are written.
const BUDGET: u64 = 1 << 20;

/// Lines that each callsite of an error may write after the budget is used up.
const RESERVED_LINES: u32 = 2;

/// Most bytes of a line, with its newline.
const MAX_LINE: usize = 4096;

/// Lines that a callsite may write at once.
const BURST: u32 = 50;

/// Time after which a callsite may write one more line.
const INTERVAL: Duration = Duration::from_secs(1);

/// Makes `file` the log of the process. The log owns the file.
pub(super) fn start(file: File, format: LogFormat, debug: bool) {
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_target(false).with_ansi(false);
    match format {
        LogFormat::Text => builder.with_writer(Log::new(file, format)).init(),
        LogFormat::Json => builder.json().with_writer(Log::new(file, format)).init(),
    }
}

/// The log's file and its bounds. It makes a writer for each line.
#[derive(Debug)]
struct Log(Mutex<State>);

#[derive(Debug)]
struct State {
    file: File,
    format: LogFormat,
    /// Bytes in the file.
    used: u64,
    /// Whether the budget is used up.
    full: bool,
    callsites: HashMap<Identifier, Callsite>,
}

/// What a callsite may still write.
#[derive(Debug)]
struct Callsite {
    lines: u32,
    /// Time up to which `lines` has been increased.
    counted: Instant,
    suppressed: u64,
    reserved_lines: u32,
}

impl Callsite {
    fn new(now: Instant) -> Self {
        Self { lines: BURST, counted: now, suppressed: 0, reserved_lines: RESERVED_LINES }
    }

    /// Takes one line from the callsite's rate. `None` if it has none left, otherwise the number of lines that were suppressed
    /// since the last one.
    fn take_line(&mut self, now: Instant) -> Option<u64> {
        let intervals = now.saturating_duration_since(self.counted).as_secs() / INTERVAL.as_secs();
        self.lines = self.lines.saturating_add(u32::try_from(intervals).unwrap_or(u32::MAX)).min(BURST);
        self.counted += INTERVAL.saturating_mul(u32::try_from(intervals).unwrap_or(u32::MAX));
        match self.lines.checked_sub(1) {
            Some(left) => {
                self.lines = left;
                Some(std::mem::take(&mut self.suppressed))
            }
            None => {
                self.suppressed += 1;
                None
            }
        }
    }

    fn take_reserved_line(&mut self) -> bool {
        let left = self.reserved_lines.checked_sub(1);
        self.reserved_lines = left.unwrap_or_default();
        left.is_some()
    }
}

impl Log {
    fn new(file: File, format: LogFormat) -> Self {
        // What an earlier process wrote counts as well. A file without a length, such as a terminal, has 0.
        let used = file.metadata().map_or(0, |metadata| metadata.len());
        Self(Mutex::new(State { file, format, used, full: false, callsites: HashMap::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer of the next line of the callsite with this metadata, if it may write one now.
    fn writer(&self, metadata: &Metadata<'_>, now: Instant) -> OptionalWriter<Line<'_>> {
        let is_error = *metadata.level() == Level::ERROR;
        let mut state = self.state();
        let full = state.full;
        let callsite = state.callsites.entry(metadata.callsite()).or_insert_with(|| Callsite::new(now));
        let suppressed = match full {
            true => (is_error && callsite.take_reserved_line()).then_some(0),
            false => callsite.take_line(now),
        };
        let Some(suppressed) = suppressed else { return OptionalWriter::none() };
        if suppressed > 0 {
            let place = format!("{}:{}", metadata.file().unwrap_or_default(), metadata.line().unwrap_or_default());
            state.write_notice(&format!("{suppressed} messages of {place} were suppressed"));
        }
        drop(state);
        OptionalWriter::some(Line { log: self, is_error })
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = OptionalWriter<Line<'a>>;

    /// The subscriber calls only [`MakeWriter::make_writer_for`]. Without a callsite there is no line.
    fn make_writer(&'a self) -> Self::Writer {
        OptionalWriter::none()
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        self.writer(metadata, Instant::now())
    }
}

/// Writes one line, which the subscriber passes as a whole.
struct Line<'a> {
    log: &'a Log,
    is_error: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.log.state();
        let line = bounded(&String::from_utf8_lossy(bytes), state.format);
        state.append(&line, self.is_error)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    /// Appends a line. If it exceeds the budget, the note that the log ends is appended instead, and after that the line if it is an
    /// error.
    fn append(&mut self, line: &str, is_error: bool) -> io::Result<()> {
        if !self.full && self.used + line.len() as u64 > BUDGET {
            self.full = true;
            self.write_notice("the log is full: from here on it has only errors, and not all of them");
        }
        if self.full && !is_error {
            return Ok(());
        }
        self.used += line.len() as u64;
        // One call, so that lines of several processes do not mix.
        self.file.write_all(line.as_bytes())
    }

    /// Appends a line of the log itself. It counts like others, but has no other bound: there is one for each line of a callsite at
    /// most.
    fn write_notice(&mut self, text: &str) {
        let line = notice(text, self.format);
        self.used += line.len() as u64;
        // The subscriber ignores a failure to write as well.
        let _ = self.file.write_all(line.as_bytes());
    }
}

/// A line of the log itself, in the form of the subscriber's.
fn notice(text: &str, format: LogFormat) -> String {
    let mut time = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut format::Writer::new(&mut time));
    match format {
        LogFormat::Text => format!("{time}  WARN {text}\n"),
        LogFormat::Json => {
            let fields = serde_json::json!({ "message": text });
            format!("{}\n", serde_json::json!({ "timestamp": time, "level": "WARN", "fields": fields }))
        }
    }
}

/// A line without control characters other than its newline, and with at most [`MAX_LINE`] bytes. The end of a long text is cut off. A
/// long JSON object would be none without its end, so a note takes its place.
fn bounded(line: &str, format: LogFormat) -> String {
    const CUT: &str = "...\n";
    let mut escaped = escape_control_characters(line.trim_end_matches('\n'));
    if escaped.len() < MAX_LINE {
        escaped.push('\n');
        return escaped;
    }
    match format {
        LogFormat::Text => {
            let end = (0..=MAX_LINE - CUT.len()).rev().find(|end| escaped.is_char_boundary(*end));
            escaped.truncate(end.unwrap_or_default());
            escaped + CUT
        }
        LogFormat::Json => notice(&format!("a message of {} bytes was left out", line.len()), format),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use tracing_subscriber::fmt::SubscriberBuilder;
    use tracing_subscriber::util::SubscriberInitExt;

    use std::path::Path;

    use super::*;

    fn appending(path: &Path) -> File {
        File::options().append(true).open(path).unwrap()
    }

    /// Runs `action` with a log, and returns the log's content.
    fn logged(format: LogFormat, action: impl FnOnce()) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = Log::new(appending(file.path()), format);
        let builder: SubscriberBuilder = tracing_subscriber::fmt();
        let builder = builder.with_target(false).with_ansi(false);
        let guard = match format {
            LogFormat::Text => builder.with_writer(log).finish().set_default(),
            LogFormat::Json => builder.json().with_writer(log).finish().set_default(),
        };
        action();
        drop(guard);
        let mut text = String::new();
        file.reopen().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_guest_that_repeats_a_warning_does_not_fill_the_file() {
        let text = logged(LogFormat::Text, || (0..100_000).for_each(|_| tracing::warn!("a connection was refused")));
        let lines = text.lines().count();
        assert!((50..100).contains(&lines), "{lines} lines");
    }

    #[test]
    fn a_callsite_has_a_rate_and_its_suppressed_lines_are_counted() {
        let start = Instant::now();
        let mut callsite = Callsite::new(start);
        assert!((0..BURST).all(|_| callsite.take_line(start) == Some(0)));
        assert_eq!((callsite.take_line(start), callsite.take_line(start)), (None, None));
        assert_eq!(callsite.take_line(start + INTERVAL), Some(2));
        assert_eq!(callsite.take_line(start + INTERVAL + INTERVAL / 2), None);
        assert_eq!(callsite.take_line(start + 2 * INTERVAL), Some(1));
        let later = start + 1000 * INTERVAL;
        assert_eq!((0..2 * BURST).filter(|_| callsite.take_line(later).is_some()).count(), BURST as usize);
    }

    #[test]
    fn the_file_is_bounded_and_the_cause_of_the_end_is_recorded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(BUDGET - 2000).unwrap();
        let log = Log::new(appending(file.path()), LogFormat::Text);
        let guard = tracing_subscriber::fmt().with_ansi(false).with_writer(log).finish().set_default();
        (0..40).for_each(|_| tracing::warn!("{}", "x".repeat(200)));
        (0..40).for_each(|_| tracing::error!("cannot activate a device"));
        tracing::error!("the guest ended");
        tracing::warn!("dropped");
        drop(guard);
        let text = std::fs::read(file.path()).unwrap();
        assert!(text.len() as u64 <= BUDGET + 1000, "{} bytes", text.len());
        let text = String::from_utf8(text[usize::try_from(BUDGET - 2000).unwrap()..].to_vec()).unwrap();
        assert_eq!(text.matches("the log is full").count(), 1, "{text}");
        assert_eq!(text.matches("cannot activate a device").count(), RESERVED_LINES as usize, "{text}");
        assert!(text.ends_with("the guest ended\n"), "{text}");
    }

    #[test]
    fn a_line_has_a_bound_and_no_control_characters() {
        let text = logged(LogFormat::Text, || {
            tracing::info!(name = %"\u{1b}[2J", "a\u{9b}b\nERROR forged\u{7f}");
            tracing::info!("{}", "ä".repeat(MAX_LINE));
        });
        let lines: Vec<_> = text.split_inclusive('\n').collect();
        assert_eq!(lines.len(), 2, "{text:?}");
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE && !line.trim_end().contains(char::is_control)));
        assert!(lines[1].len() > MAX_LINE - 4 && lines[1].ends_with("ä...\n"));
    }

    #[test]
    fn each_line_of_a_json_log_is_an_object_without_control_characters() {
        let text = logged(LogFormat::Json, || {
            tracing::info!("a\u{1b}[2J\u{9b}\u{7f}\n");
            tracing::info!("{}", "x".repeat(2 * MAX_LINE));
        });
        let values: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(values.len(), 2);
        assert!(!text.trim_end().replace('\n', "").contains(char::is_control), "{text:?}");
        assert!(values[1]["fields"]["message"].as_str().unwrap().ends_with("bytes was left out"), "{text}");
        let notice: serde_json::Value = serde_json::from_str(&notice("a \"note\"", LogFormat::Json)).unwrap();
        assert_eq!(notice["fields"]["message"], "a \"note\"");
    }
}
