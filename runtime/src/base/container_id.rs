//! Container ids.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use thiserror::Error;

/// A container's id. It has 1 to 255 characters: ASCII letters, digits, `_`, `+`, `,`, `-` and `.`. It is neither `.` nor `..`, so it
/// is always a single path component.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ContainerId(String);

/// A text is not a container id. The message is runc's.
#[derive(Debug, Error)]
#[error("invalid container ID format")]
pub(crate) struct InvalidId;

impl ContainerId {
    /// Derives an id from the name of a bundle's directory. `-` replaces each character that an id cannot contain.
    pub(crate) fn from_bundle_directory(directory: &Path) -> Result<Self, InvalidId> {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        name.chars().map(|c| if is_allowed(c) { c } else { '-' }).collect::<String>().parse()
    }

    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let valid =
            !text.is_empty() && text != "." && text != ".." && text.len() <= 255 && text.chars().all(is_allowed);
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidId) }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | ',' | '-' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_single_path_components() {
        for id in ["web", "a.b+c_d-e", ".hidden", "0"] {
            assert_eq!(id.parse::<ContainerId>().unwrap().as_str(), id);
        }
        for id in ["", ".", "..", "a/b", "/a", "a b", "ä", "a\n", "a\0", &"x".repeat(256)] {
            assert!(id.parse::<ContainerId>().is_err(), "{id:?}");
        }
    }

    #[test]
    fn the_name_of_a_bundle_directory_becomes_the_id() {
        assert_eq!(ContainerId::from_bundle_directory(Path::new("/srv/my web")).unwrap().as_str(), "my-web");
        assert!(ContainerId::from_bundle_directory(Path::new("/")).is_err());
    }
}
