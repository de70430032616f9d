//! What the host has mounted, as `/proc/self/mountinfo` lists it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, statx};

/// One mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct HostMount {
    id: u64,
    /// What of its file system it shows.
    pub(crate) root: PathBuf,
    /// Where it is.
    pub(crate) point: PathBuf,
    /// Type of its file system.
    pub(crate) kind: String,
}

impl HostMount {
    /// Reads a line of `mountinfo`: behind the options comes a list that ends with a dash, and then the type.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (root, point) = (unescape(fields.nth(2)?), unescape(fields.next()?));
        let kind = fields.skip_while(|field| *field != "-").nth(1)?.into();
        Some(Self { id, root, point, kind })
    }
}

/// All mounts that this process sees, in the order in which they were made.
#[derive(Clone, Debug)]
pub(crate) struct HostMounts(Vec<HostMount>);

impl HostMounts {
    pub(crate) fn read() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self(mounts.lines().filter_map(HostMount::parse).collect()))
    }

    /// The mount that `place` is in.
    pub(crate) fn of(&self, place: &OwnedFd) -> io::Result<Option<&HostMount>> {
        let stat = statx(place, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        Ok(self.0.iter().find(|mount| mount.id == stat.stx_mnt_id))
    }

    /// What is mounted below `place`, a directory, and where from there; of mounts one over another the visible one. What is above
    /// comes first.
    pub(crate) fn below(&self, place: &OwnedFd) -> io::Result<Vec<(PathBuf, &HostMount)>> {
        let base = path_of(place)?;
        let below = self.0.iter().filter_map(|mount| Some((relative(&base, &mount.point)?, mount)));
        let mut visible: Vec<_> = below.filter(|(path, mount)| is_at(place, path, mount.id)).collect();
        visible.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        Ok(visible)
    }
}

/// The path of a place, as this process sees it.
pub(crate) fn path_of(place: &OwnedFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

fn relative(base: &Path, path: &Path) -> Option<PathBuf> {
    path.strip_prefix(base).ok().filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned)
}

/// Whether the mount with this id is what one comes to there: it may be hidden by another one.
fn is_at(place: &OwnedFd, path: &Path, mount: u64) -> bool {
    let found = statx(place, path, AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID);
    found.is_ok_and(|stat| stat.stx_mnt_id == mount)
}

/// Blanks and the like are written as a backslash and three octal digits.
fn unescape(field: &str) -> PathBuf {
    let (mut path, mut rest) = (Vec::new(), field.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        path.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line = r"36 35 98:0 /mnt1 /mnt/a\040b\134c rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = HostMount { id: 36, root: "/mnt1".into(), point: r"/mnt/a b\c".into(), kind: "ext3".into() };
        assert_eq!(HostMount::parse(line), Some(mount));
        assert_eq!(unescape(r"/a\"), PathBuf::from(r"/a\"));
        assert_eq!(relative(Path::new("/mnt"), Path::new("/mnt/a/b")), Some("a/b".into()));
        assert_eq!(relative(Path::new("/mnt"), Path::new("/mnt")), None);
        assert_eq!(relative(Path::new("/mnt"), Path::new("/mnt2")), None);
    }

    #[test]
    fn a_place_is_in_a_mount_and_has_others_below() {
        let open = |path: &str| OwnedFd::from(fs::File::open(path).unwrap());
        let mounts = HostMounts::read().unwrap();
        let proc = mounts.of(&open("/proc/sys")).unwrap().unwrap();
        assert_eq!((proc.kind.as_str(), proc.point.as_path()), ("proc", Path::new("/proc")));
        let below = mounts.below(&open("/")).unwrap();
        assert!(below.iter().any(|(path, mount)| path == Path::new("proc") && mount.kind == "proc"));
    }
}
