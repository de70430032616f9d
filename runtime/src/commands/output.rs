//! The output of commands.

use std::io::{self, Write};

use serde::Serialize;

use super::error::Error;

/// Prints a text to standard output.
pub(super) fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Output)
}

/// Prints a value as JSON: on one line, or with `pretty` on several.
pub(super) fn print_json(value: &impl Serialize, pretty: bool) -> Result<(), Error> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    print(&(text.map_err(Error::Encode)? + "\n"))
}
