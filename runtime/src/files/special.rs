//! Special files of the host, which the VMM cannot serve, and their replacements in the guest.

use std::os::fd::{AsRawFd, OwnedFd};

use agent::{SpecialFile, SpecialKind};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{FileStat, SFlag, major, minor};

use crate::spec::device_numbers;

/// Returns the special file that the guest creates as `name` to replace the host's file `source`, an `O_PATH` descriptor, and
/// whether it is a socket. `None` if the VMM can serve the file. The error is the reason why the file has no replacement.
pub(crate) fn guest_replacement(
    name: &str,
    stat: &FileStat,
    source: &OwnedFd,
) -> Result<Option<(SpecialFile, bool)>, &'static str> {
    let kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFCHR => character_device(stat)?,
        SFlag::S_IFBLK => block_device(stat)?,
        SFlag::S_IFIFO => return Err("it is a named pipe, whose other end would be in another kernel"),
        SFlag::S_IFSOCK if is_datagram_socket(source) => {
            return Err("it is a datagram socket, and only stream sockets are forwarded");
        }
        SFlag::S_IFSOCK => SpecialKind::Socket,
        _ => return Ok(None),
    };
    let mode = stat.st_mode & !SFlag::S_IFMT.bits();
    let file = SpecialFile { name: name.into(), kind, mode, uid: stat.st_uid, gid: stat.st_gid };
    Ok(Some((file, kind == SpecialKind::Socket)))
}

fn character_device(stat: &FileStat) -> Result<SpecialKind, &'static str> {
    let (major, minor) = device_number(stat)?;
    match device_numbers::has_guest_equivalent(major.into(), minor.into()) {
        true => Ok(SpecialKind::Device { major, minor }),
        false => Err("it is a device of the host, which the guest does not have"),
    }
}

fn block_device(stat: &FileStat) -> Result<SpecialKind, &'static str> {
    match device_number(stat)? {
        (major, minor) if device_numbers::is_loop(major.into()) => Ok(SpecialKind::BlockDevice { major, minor }),
        _ => Err("it is a block device of the host"),
    }
}

fn device_number(stat: &FileStat) -> Result<(u32, u32), &'static str> {
    let part = |number: u64| u32::try_from(number).map_err(|_| "its device number is out of range");
    Ok((part(major(stat.st_rdev))?, part(minor(stat.st_rdev))?))
}

/// Whether a server receives datagrams at the socket `source`. The server does not notice this check.
fn is_datagram_socket(source: &OwnedFd) -> bool {
    let connect_datagram = || -> nix::Result<()> {
        let probe = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let address = UnixAddr::new(format!("/proc/self/fd/{}", source.as_raw_fd()).as_str())?;
        connect(probe.as_raw_fd(), &address)
    };
    // This fails for a stream socket, whose type differs, and for a socket without a server, which may get one of any type later.
    connect_datagram().is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::path::Path;

    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::{Mode, fstat};
    use nix::unistd::mkfifo;

    use super::*;

    fn replacement(path: &Path) -> Result<Option<(SpecialFile, bool)>, &'static str> {
        let source = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        guest_replacement("x", &fstat(&source).unwrap(), &source)
    }

    #[test]
    fn only_devices_of_every_kernel_have_a_replacement() {
        let (file, is_socket) = replacement(Path::new("/dev/null")).unwrap().unwrap();
        assert_eq!((file.kind, file.mode, is_socket), (SpecialKind::Device { major: 1, minor: 3 }, 0o666, false));
        assert!(replacement(Path::new("/dev/ptmx")).unwrap_err().contains("device of the host"));
        assert_eq!(replacement(Path::new("/")).unwrap(), None);
    }

    #[test]
    fn only_stream_sockets_have_a_replacement() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let listener = UnixListener::bind(path("stream")).unwrap();
        let _datagrams = UnixDatagram::bind(path("datagrams")).unwrap();
        mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
        assert!(replacement(&path("stream")).unwrap().unwrap().1);
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "the server sees no connection");
        drop(listener);
        assert!(replacement(&path("stream")).unwrap().unwrap().1, "a server may start later");
        assert!(replacement(&path("datagrams")).unwrap_err().contains("datagram"));
        assert!(replacement(&path("pipe")).unwrap_err().contains("named pipe"));
    }
}
