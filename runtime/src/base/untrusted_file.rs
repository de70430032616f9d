//! Files that other programs write or replace. Such a file may have any length, and may be a device or a pipe.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// Reads the first bytes of a regular file, `limit` at most.
///
/// # Errors
///
/// Fails if the file cannot be read or is not a regular one.
pub(crate) fn read_start(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    open(path)?.take(limit).read_to_end(&mut start)?;
    Ok(start)
}

fn open(path: &Path) -> io::Result<File> {
    // Without these flags, a pipe would block and a terminal would become the controlling one, before the type is known.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn no_more_than_the_limit_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "0123456789").unwrap();
        assert_eq!(read_start(file.path(), 4).unwrap(), b"0123");
        assert_eq!(read_start(file.path(), 20).unwrap(), b"0123456789");
    }

    #[test]
    fn a_pipe_and_a_device_are_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/zero"), directory.path()] {
            assert!(read_start(path, 4).is_err(), "{}", path.display());
        }
    }
}
