//! Files of the host that no file server can show, and what the guest gets in their place.

use std::os::fd::{AsRawFd, OwnedFd};

use agent::{SpecialFile, SpecialKind};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{FileStat, SFlag, major, minor};

use crate::spec::device_numbers;

/// The file in the guest, called `name`, that stands for the host's at `place`, and whether it leads to a socket; none for
/// what can be shared. What has no stand-in is refused with the reason.
pub(crate) fn in_guest(
    name: &str,
    stat: &FileStat,
    place: &OwnedFd,
) -> Result<Option<(SpecialFile, bool)>, &'static str> {
    let kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFCHR => device(stat)?,
        SFlag::S_IFBLK => block_device(stat)?,
        SFlag::S_IFIFO => return Err("it is a named pipe, whose other end would be in another kernel"),
        SFlag::S_IFSOCK if is_datagram(place) => {
            return Err("it is a datagram socket, and only streams are led through");
        }
        SFlag::S_IFSOCK => SpecialKind::Socket,
        _ => return Ok(None),
    };
    let mode = stat.st_mode & !SFlag::S_IFMT.bits();
    let file = SpecialFile { name: name.into(), kind, mode, uid: stat.st_uid, gid: stat.st_gid };
    Ok(Some((file, kind == SpecialKind::Socket)))
}

fn device(stat: &FileStat) -> Result<SpecialKind, &'static str> {
    let (major, minor) = numbers(stat)?;
    match device_numbers::is_in_guest(major.into(), minor.into()) {
        true => Ok(SpecialKind::Device { major, minor }),
        false => Err("it is a device of the host, which the guest's kernel has not"),
    }
}

fn block_device(stat: &FileStat) -> Result<SpecialKind, &'static str> {
    match numbers(stat)? {
        (major, minor) if device_numbers::is_loop(major.into()) => Ok(SpecialKind::BlockDevice { major, minor }),
        _ => Err("it is a block device of the host"),
    }
}

fn numbers(stat: &FileStat) -> Result<(u32, u32), &'static str> {
    let part = |number: u64| u32::try_from(number).map_err(|_| "it has a number no device has");
    Ok((part(major(stat.st_rdev))?, part(minor(stat.st_rdev))?))
}

/// Whether a server waits there for datagrams: it does not notice being asked.
fn is_datagram(place: &OwnedFd) -> bool {
    let ask = || -> nix::Result<()> {
        let probe = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let address = UnixAddr::new(format!("/proc/self/fd/{}", place.as_raw_fd()).as_str())?;
        connect(probe.as_raw_fd(), &address)
    };
    // A stream socket is of the wrong type for it, and one without a server may have one of any type later.
    ask().is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::path::Path;

    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::{Mode, fstat};
    use nix::unistd::mkfifo;

    use super::*;

    fn of(path: &Path) -> Result<Option<(SpecialFile, bool)>, &'static str> {
        let place = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        in_guest("x", &fstat(&place).unwrap(), &place)
    }

    #[test]
    fn only_devices_that_every_kernel_has_are_made() {
        let (file, is_socket) = of(Path::new("/dev/null")).unwrap().unwrap();
        assert_eq!((file.kind, file.mode, is_socket), (SpecialKind::Device { major: 1, minor: 3 }, 0o666, false));
        assert!(of(Path::new("/dev/ptmx")).unwrap_err().contains("device of the host"));
        assert_eq!(of(Path::new("/")).unwrap(), None);
    }

    #[test]
    fn sockets_are_led_through_if_they_are_streams() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let listener = UnixListener::bind(path("stream")).unwrap();
        let _datagrams = UnixDatagram::bind(path("datagrams")).unwrap();
        mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
        assert!(of(&path("stream")).unwrap().unwrap().1);
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "the server was not disturbed");
        drop(listener);
        assert!(of(&path("stream")).unwrap().unwrap().1, "its server may come later");
        assert!(of(&path("datagrams")).unwrap_err().contains("datagram"));
        assert!(of(&path("pipe")).unwrap_err().contains("named pipe"));
    }
}
