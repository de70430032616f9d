//! The text of an error and of its causes on one line.

use std::error::Error;
use std::io;

/// Joins the text of an error and of each of its causes with `: `.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(cause_text(error).trim_end());
        source = error.source();
    }
    text
}

/// The text of a cause. An operating system error looks as in runc, which is written in Go: it starts in lower case and has no number.
fn cause_text(error: &(dyn Error + 'static)) -> String {
    let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) else {
        return error.to_string();
    };
    let text = error.to_string();
    let text = text.strip_suffix(&format!(" (os error {number})")).unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("chdir /x")]
    struct Chdir(#[source] io::Error);

    /// Stands for the error of a command, which wraps the error of a step.
    #[derive(Debug, Error)]
    #[error(transparent)]
    struct Command(Chdir);

    #[test]
    fn each_cause_appears_once() {
        let error = Command(Chdir(io::Error::from_raw_os_error(2)));
        assert_eq!(chain(&error), "chdir /x: no such file or directory");
        assert_eq!(chain(&Chdir(io::Error::other("Unknown Reason"))), "chdir /x: Unknown Reason");
    }
}
