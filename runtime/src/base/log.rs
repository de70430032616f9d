//! Messages for the user and the log file, in the formats that engines parse.
//!
//! Guests choose parts of the texts, such as the cause of a failure. Engines print a decoded `msg` on the user's terminal. So control
//! characters are escaped in every format, before the format's own escapes.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use thiserror::Error;
use vmm::escape_control_characters;

use crate::base::timestamp;

/// Most bytes of a message. A guest's failure may have megabytes.
const MAX_MESSAGE: usize = 16 << 10;

/// Format of a log line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Format {
    /// `time="..." level=error msg="..."`
    Text,
    /// `{"level":"error","msg":"...","time":"..."}`
    Json,
}

/// Why the log cannot be opened.
#[derive(Debug, Error)]
#[error("open log file {}", path.display())]
pub(crate) struct LogError {
    path: PathBuf,
    source: io::Error,
}

/// The destination of a command's messages.
#[derive(Debug)]
pub(crate) struct Log {
    format: Format,
    /// The log file. Without one, messages go to standard error.
    file: Option<File>,
    /// Whether debug messages are written.
    pub(crate) debug: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    level: &'a str,
    msg: &'a str,
    time: String,
}

impl Log {
    /// Opens `file` to append to it. Without one, every message goes to standard error.
    pub(crate) fn new(file: Option<&Path>, format: Format, debug: bool) -> Result<Self, LogError> {
        let file = file.filter(|path| ![Path::new(""), Path::new("/dev/stderr")].contains(path));
        let file = file.map(open).transpose()?;
        Ok(Self { format, file, debug })
    }

    /// Logs why the command failed. If the log is a file, the message goes to standard error as well.
    pub(crate) fn error(&self, message: &str) {
        self.write("error", message);
        if self.file.is_some() {
            eprintln!("{}", printable(message));
        }
    }

    /// Logs a warning: the command continues.
    pub(crate) fn warn(&self, message: &str) {
        self.write("warning", message);
    }

    /// Logs a debug message, if debug messages are enabled.
    pub(crate) fn debug(&self, message: &str) {
        if self.debug {
            self.write("debug", message);
        }
    }

    fn write(&self, level: &str, message: &str) {
        let result = match &self.file {
            Some(file) => (&*file).write_all(self.line(level, message, false).as_bytes()),
            None => {
                let mut stderr = io::stderr().lock();
                let line = self.line(level, message, stderr.is_terminal());
                stderr.write_all(line.as_bytes())
            }
        };
        // A log that cannot be written must not decide how the command ends.
        drop(result);
    }

    fn line(&self, level: &str, message: &str, terminal: bool) -> String {
        let message = &printable(message);
        let time = timestamp::rfc3339_seconds(SystemTime::now());
        match self.format {
            Format::Json => {
                let line = serde_json::to_string(&Line { level, msg: message, time });
                line.map(|line| line + "\n").unwrap_or_default()
            }
            Format::Text if terminal => format!("{:.4}[0000] {message}\n", level.to_uppercase()),
            Format::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
        }
    }
}

/// A message without control characters, cut off after [`MAX_MESSAGE`] bytes.
fn printable(message: &str) -> String {
    let message = message.trim_end();
    let end = (0..=message.len().min(MAX_MESSAGE)).rev().find(|end| message.is_char_boundary(*end)).unwrap_or_default();
    let escaped = escape_control_characters(&message[..end]);
    if end < message.len() { escaped + "..." } else { escaped }
}

fn open(path: &Path) -> Result<File, LogError> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.map_err(|source| LogError { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_has_the_keys_engines_parse() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        Log::new(Some(&path), Format::Json, false).unwrap().warn("a \"b\"\n");
        let line = std::fs::read_to_string(path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "warning");
        assert_eq!(value["msg"], "a \"b\"");
        assert!(value["time"].as_str().unwrap().ends_with('Z'));
        assert!(line.ends_with('\n') && line.starts_with("{\"level\""));
    }

    #[test]
    fn the_text_format_quotes_messages_and_omits_debug_messages_by_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = Log::new(Some(&path), Format::Text, false).unwrap();
        log.debug("hidden");
        log.warn("say \"x\"");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.ends_with("level=warning msg=\"say \\\"x\\\"\"\n"), "{text}");
        assert!(!text.contains("hidden"));
    }

    #[test]
    fn no_format_passes_control_characters_on() {
        let hostile = "cause\u{1b}]0;owned\u{7}\u{9b}2J\u{7f}\r\nlevel=error";
        let safe = r"cause\u001b]0;owned\u0007\u009b2J\u007f\r\nlevel=error";
        for (format, terminal) in [(Format::Text, true), (Format::Text, false), (Format::Json, false)] {
            let line = Log::new(None, format, false).unwrap().line("error", hostile, terminal);
            assert!(!line.trim_end_matches('\n').contains(char::is_control), "{line:?}");
            if format == Format::Json {
                assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["msg"], safe);
            }
        }
    }

    #[test]
    fn a_long_message_is_cut_off() {
        let long = format!("x{}", "ä".repeat(MAX_MESSAGE));
        let cut = printable(&long);
        assert_eq!(cut.len(), MAX_MESSAGE - 1 + "...".len());
        assert!(long.starts_with(cut.trim_end_matches('.')) && cut.ends_with("ä..."));
    }

    #[test]
    fn an_empty_path_means_standard_error() {
        assert!(Log::new(Some(Path::new("")), Format::Text, false).unwrap().file.is_none());
    }

    #[test]
    fn a_log_in_a_missing_directory_is_an_error_with_its_path() {
        let error = Log::new(Some(Path::new("/nonexistent/log")), Format::Text, false).unwrap_err();
        assert_eq!(error.to_string(), "open log file /nonexistent/log");
    }
}
