//! The output of commands. Tables escape control characters of the guest and of the caller in each cell, JSON escapes them here.

use std::io::{self, Write};

use serde::Serialize;
use vmm::escape_control_characters;

use super::error::Error;

/// Prints a text to standard output.
pub(super) fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Output)
}

/// Prints a value as JSON: on one line, or with `pretty` on several.
pub(super) fn print_json(value: &impl Serialize, pretty: bool) -> Result<(), Error> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    print(&without_control_characters(&text.map_err(Error::Encode)?))
}

/// The lines of a JSON text. The encoder escapes the control characters of ASCII below the space, and not the others, which are
/// controls for terminals as well. They are in strings only, where their escape sequences mean the same.
fn without_control_characters(json: &str) -> String {
    json.lines().map(|line| escape_control_characters(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::without_control_characters;

    #[test]
    fn json_has_no_control_characters_and_keeps_its_value() {
        let value = serde_json::json!({ "name": ["\u{1b}[2J\n", "\u{9b}2J\u{7f}\u{85}"] });
        for text in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            let safe = without_control_characters(&text);
            assert!(!safe.replace('\n', "").contains(char::is_control), "{safe:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
            assert_eq!(safe.lines().count(), text.lines().count());
        }
    }
}
