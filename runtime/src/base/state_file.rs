//! The files in a container's directory. Whoever may write in the directory may have replaced one. So no file is opened through a symbolic link, none that could block or is endless is read, and each has a bound.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// Opens the regular file at `path` with `options`. The caller owns the file, which is closed at `execve`.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is no regular file, or what `open` returns.
pub(crate) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Without O_NONBLOCK, a FIFO would block until its other end is opened.
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file = file.map_err(|error| match error.raw_os_error() {
        // A symbolic link, and a socket or a FIFO without a reader.
        Some(libc::ELOOP | libc::ENXIO) => irregular(),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(irregular()) }
}

/// Reads a regular file of at most `max` bytes.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is no regular file or larger, or what the system calls return.
pub(crate) fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path, OpenOptions::new().read(true))?.take(max + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        length if length > max => Err(invalid(format!("it has more than {max} bytes"))),
        _ => Ok(bytes),
    }
}

/// Reads the last `max` bytes of a regular file, or all if there are fewer.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is no regular file, or what the system calls return.
pub(crate) fn read_end(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut file = open(path, OpenOptions::new().read(true))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(max)))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a new file with `bytes`. What has the name is removed before, and never written to.
///
/// # Errors
/// What the system calls return; `EEXIST` if a directory has the name.
pub(crate) fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    // A failure shows below, because the name is then still in use.
    let _ = fs::remove_file(path);
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(bytes)
}

/// Replaces the file at `path` by one with `bytes`, so that no reader sees a part of it. Meanwhile `temporary` has them, which is in
/// the same directory.
///
/// # Errors
/// What the system calls return. The file is then what it was.
pub(crate) fn replace(path: &Path, temporary: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let result = write_new(temporary, mode, bytes).and_then(|()| fs::rename(temporary, path));
    if result.is_err() {
        // The first failure is the one to report.
        let _ = fs::remove_file(temporary);
    }
    result
}

fn irregular() -> io::Error {
    invalid("it is not a regular file".to_owned())
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn only_a_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "text").unwrap();
        symlink(path("file"), path("link")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        assert_eq!(read(&path("file"), 100).unwrap(), b"text");
        for name in ["link", "fifo", "socket", "directory"] {
            assert_eq!(read(&path(name), 100).unwrap_err().kind(), io::ErrorKind::InvalidData, "{name}");
            assert!(read_end(&path(name), 100).is_err(), "{name}");
        }
        for name in ["link", "fifo"] {
            assert!(open(&path(name), OpenOptions::new().write(true)).is_err(), "{name}");
        }
        assert_eq!(read(&path("absent"), 100).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn no_more_than_the_bound_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(read(&path, 10).unwrap(), b"0123456789");
        assert_eq!(read(&path, 9).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!((read_end(&path, 3).unwrap(), read_end(&path, 20).unwrap().len()), (b"789".to_vec(), 10));
        file.set_len(1 << 40).unwrap();
        assert!(read(&path, 1 << 10).is_err());
        assert_eq!(read_end(&path, 1 << 10).unwrap().len(), 1 << 10);
    }

    #[test]
    fn nothing_is_written_through_a_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("other"), "mine").unwrap();
        for name in ["new", "temporary"] {
            symlink(path("other"), path(name)).unwrap();
        }
        write_new(&path("new"), 0o600, b"1").unwrap();
        replace(&path("file"), &path("temporary"), 0o600, b"2").unwrap();
        let text = |name: &str| fs::read_to_string(path(name)).unwrap();
        assert_eq!([text("other"), text("new"), text("file")], ["mine", "1", "2"]);
        assert!(!path("temporary").exists());
        fs::create_dir(path("directory")).unwrap();
        assert!(replace(&path("directory"), &path("temporary"), 0o600, b"3").is_err());
        assert!(!path("temporary").exists());
    }
}
