//! The host's mounts, as `/proc/self/mountinfo` lists them.

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
    /// The directory of the file system that is mounted.
    pub(crate) root: PathBuf,
    /// The mount point.
    pub(crate) point: PathBuf,
    /// The file system type.
    pub(crate) kind: String,
}

impl HostMount {
    /// Parses a line of `mountinfo`, proc_pid_mountinfo(5). After the mount options come optional fields, a hyphen as their end,
    /// and the file system type.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (root, point) = (unescape(fields.nth(2)?), unescape(fields.next()?));
        let kind = fields.skip_while(|field| *field != "-").nth(1)?.into();
        Some(Self { id, root, point, kind })
    }
}

/// All mounts in the mount namespace of this process, in the order of `mountinfo`.
#[derive(Clone, Debug)]
pub(crate) struct HostMounts(Vec<HostMount>);

impl HostMounts {
    pub(crate) fn read() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self(mounts.lines().filter_map(HostMount::parse).collect()))
    }

    /// Returns the mount that contains an open file.
    pub(crate) fn of(&self, file: &OwnedFd) -> io::Result<Option<&HostMount>> {
        let stat = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        Ok(self.0.iter().find(|mount| mount.id == stat.stx_mnt_id))
    }

    /// Returns the mounts below an open directory, each with its path relative to it. Of mounts at the same point only the
    /// visible one is returned. Parents come before their children.
    pub(crate) fn below(&self, file: &OwnedFd) -> io::Result<Vec<(PathBuf, &HostMount)>> {
        let base = path_of(file)?;
        let below = self.0.iter().filter_map(|mount| Some((relative(&base, &mount.point)?, mount)));
        let mut visible: Vec<_> = below.filter(|(path, mount)| is_at(file, path, mount.id)).collect();
        visible.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        Ok(visible)
    }
}

/// Returns the path of an open file in the mount namespace of this process.
pub(crate) fn path_of(file: &OwnedFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn relative(base: &Path, path: &Path) -> Option<PathBuf> {
    path.strip_prefix(base).ok().filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned)
}

/// Whether `path` below an open directory resolves to the mount with this id: another mount may cover it.
fn is_at(file: &OwnedFd, path: &Path, mount: u64) -> bool {
    let found = statx(file, path, AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID);
    found.is_ok_and(|stat| stat.stx_mnt_id == mount)
}

/// Decodes a field of `mountinfo`, in which white space and backslashes are escaped as a backslash and three octal digits.
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
    fn mountinfo_lines_and_relative_paths_are_parsed() {
        let line = r"36 35 98:0 /mnt1 /mnt/a\040b\134c rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = HostMount { id: 36, root: "/mnt1".into(), point: r"/mnt/a b\c".into(), kind: "ext3".into() };
        assert_eq!(HostMount::parse(line), Some(mount));
        assert_eq!(unescape(r"/a\"), PathBuf::from(r"/a\"));
        assert_eq!(relative(Path::new("/mnt"), Path::new("/mnt/a/b")), Some("a/b".into()));
        assert_eq!(relative(Path::new("/mnt"), Path::new("/mnt")), None);
        assert_eq!(relative(Path::new("/mnt"), Path::new("/mnt2")), None);
    }

    #[test]
    fn the_mount_of_a_directory_and_the_mounts_below_it_are_found() {
        let open = |path: &str| OwnedFd::from(fs::File::open(path).unwrap());
        let mounts = HostMounts::read().unwrap();
        let proc = mounts.of(&open("/proc/sys")).unwrap().unwrap();
        assert_eq!((proc.kind.as_str(), proc.point.as_path()), ("proc", Path::new("/proc")));
        let below = mounts.below(&open("/")).unwrap();
        assert!(below.iter().any(|(path, mount)| path == Path::new("proc") && mount.kind == "proc"));
    }
}
