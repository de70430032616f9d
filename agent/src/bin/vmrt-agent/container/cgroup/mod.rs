//! The cgroup of a container (version 2, the only one in the guest).

mod devices;
mod resources;
mod statistics;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use self::resources::Settings;
use crate::error::Error;
use crate::sys::cgroup::{enable_controllers, open_directory, read_all};
use crate::sys::files;

/// A container's cgroup, in which its processes are made.
pub(crate) struct Cgroup {
    path: PathBuf,
    root: OwnedFd,
    directory: OwnedFd,
    memory_events: Option<OwnedFd>,
    oom_kills: u64,
}

/// The path of a container's cgroup relative to that of all containers: `linux.cgroupsPath` without components that
/// lead elsewhere, or the container's id.
pub(crate) fn path(cgroups_path: Option<&Path>, container: &str) -> PathBuf {
    let names = cgroups_path.into_iter().flat_map(Path::components);
    let path: PathBuf = names.filter(|name| matches!(name, Component::Normal(_))).collect();
    match path.as_os_str().is_empty() {
        true => container.into(),
        false => path,
    }
}

impl Cgroup {
    /// Makes the cgroup `path` with `settings`, and missing parents.
    pub(crate) fn make(root: BorrowedFd<'_>, path: &Path, settings: &Settings) -> Result<Self, Error> {
        let root =
            root.try_clone_to_owned().map_err(|_| Error::at("open the cgroup of all containers")(Errno::MFILE))?;
        make_parents(root.as_fd(), path)?;
        rustix::fs::mkdirat(&root, path, Mode::from_raw_mode(0o755)).map_err(Error::on("make cgroup", path))?;
        let made = Self::open(root, path.to_owned());
        let made = made.map_err(Error::on("open cgroup", path))?;
        match settings.apply(made.directory.as_fd()) {
            Ok(()) => Ok(made),
            Err(error) => {
                // The first error is reported. The cgroup is empty, so its removal does not fail.
                let _ = made.remove();
                Err(error)
            }
        }
    }

    fn open(root: OwnedFd, path: PathBuf) -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&root, &path, flags, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let memory_events = rustix::fs::openat(&directory, "memory.events", flags, Mode::empty()).ok();
        Ok(Self { path, root, directory, memory_events, oom_kills: 0 })
    }

    /// Its directory, for making processes in it.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The directory of an existing cgroup below it.
    pub(crate) fn open_below(&self, path: &Path) -> Result<OwnedFd, Error> {
        let path = path.strip_prefix("/").unwrap_or(path);
        if !path.components().all(|name| matches!(name, Component::Normal(_))) {
            return Err(Error::invalid("cgroup", format!("{} is not a sub cgroup path", path.display())));
        }
        match path.as_os_str().is_empty() {
            true => open_directory(self.directory.as_fd(), "."),
            false => open_directory(self.directory.as_fd(), path),
        }
        .map_err(add_error(path))
    }

    /// The directory of the cgroup of process `pid`, which is this one or one below it.
    pub(crate) fn open_of_process(&self, proc: BorrowedFd<'_>, pid: Option<i32>) -> Result<OwnedFd, Error> {
        let failed = || Error::at("find the cgroup of the container's first process");
        let file = format!("{}/cgroup", pid.ok_or(Errno::SRCH).map_err(failed())?);
        let file = rustix::fs::openat(proc, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let text = file.and_then(|file| read_all(file.as_fd())).map_err(failed())?;
        let path = text.trim_end().strip_prefix("0::/").map(Path::new).filter(|path| path.starts_with(&self.path));
        open_directory(self.root.as_fd(), path.ok_or(Errno::NOENT).map_err(failed())?).map_err(failed())
    }

    /// A descriptor with an exceptional condition after every change of its memory events.
    pub(crate) fn memory_events(&self) -> Option<BorrowedFd<'_>> {
        self.memory_events.as_ref().map(AsFd::as_fd)
    }

    /// Whether there was an OOM kill in it since the last call.
    pub(crate) fn had_oom_kill(&mut self) -> bool {
        let events = self.memory_events.as_ref().and_then(|events| read_all(events.as_fd()).ok());
        let kills = events.as_deref().and_then(parse_oom_kills).unwrap_or(0);
        kills > std::mem::replace(&mut self.oom_kills, kills)
    }

    /// Kills every process in it.
    pub(crate) fn kill(&self) -> rustix::io::Result<()> {
        files::write_at(self.directory.as_fd(), "cgroup.kill", b"1")
    }

    /// Begins to freeze or thaw every process in it. The kernel completes that asynchronously: see
    /// [`Cgroup::is_frozen`].
    pub(crate) fn set_frozen(&self, frozen: bool) -> rustix::io::Result<()> {
        files::write_at(self.directory.as_fd(), "cgroup.freeze", if frozen { b"1" } else { b"0" })
    }

    /// A descriptor with an exceptional condition when [`Cgroup::is_frozen`] changes or the last process ends.
    pub(crate) fn events(&self) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(&self.directory, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// Whether every process in it is frozen. `events` is a descriptor from [`Cgroup::events`].
    pub(crate) fn is_frozen(events: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        Ok(read_all(events)?.lines().any(|line| line == "frozen 1"))
    }

    /// Changes limits. The device rules stay.
    pub(crate) fn update(&self, settings: &Settings) -> Result<(), Error> {
        settings.check_usage(self.directory.as_fd())?;
        settings.apply_limits(self.directory.as_fd())
    }

    /// Pids of the processes in it and in the cgroups below it.
    pub(crate) fn processes(&self) -> rustix::io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        collect_processes(self.directory.as_fd(), &mut pids)?;
        Ok(pids)
    }

    /// Removes it and the cgroups below it. Fails with `EBUSY` while a process is in one of them.
    pub(crate) fn remove(&self) -> rustix::io::Result<()> {
        match rustix::fs::unlinkat(&self.root, &self.path, AtFlags::REMOVEDIR) {
            Err(Errno::BUSY) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        remove_below(self.directory.as_fd())?;
        rustix::fs::unlinkat(&self.root, &self.path, AtFlags::REMOVEDIR)
    }
}

/// For `map_err`: runc's message when a process cannot enter the cgroup `path`.
pub(crate) fn add_error(path: &Path) -> impl FnOnce(Errno) -> Error {
    let file = Path::new("/").join(path).join("cgroup.procs");
    Error::at(format!("adding pid of the process to cgroups: {}", file.display()))
}

fn make_parents(root: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    let mut parents: Vec<_> = path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
    parents.reverse();
    for parent in parents {
        let made = match rustix::fs::mkdirat(root, parent, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error),
        };
        made.and_then(|()| open_directory(root, parent))
            .and_then(|parent| enable_controllers(parent.as_fd()))
            .map_err(Error::on("make cgroup", parent))?;
    }
    Ok(())
}

fn parse_oom_kills(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill "))?.parse().ok()
}

/// The child cgroups: names and directories.
fn children(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<(std::ffi::CString, OwnedFd)>> {
    let mut children = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            children.push((name.to_owned(), open_directory(directory, name)?));
        }
    }
    Ok(children)
}

fn collect_processes(directory: BorrowedFd<'_>, pids: &mut Vec<i32>) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let list = rustix::fs::openat(directory, "cgroup.procs", flags, Mode::empty())?;
    pids.extend(read_all(list.as_fd())?.lines().filter_map(|pid| pid.parse::<i32>().ok()));
    for (_, child) in children(directory)? {
        collect_processes(child.as_fd(), pids)?;
    }
    Ok(())
}

fn remove_below(directory: BorrowedFd<'_>) -> rustix::io::Result<()> {
    for (name, child) in children(directory)? {
        remove_below(child.as_fd())?;
        rustix::fs::unlinkat(directory, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_path_stays_below_the_root() {
        let relative = |given: &str| path(Some(Path::new(given)), "id");
        assert_eq!(relative("/docker/abc"), Path::new("docker/abc"));
        assert_eq!(relative("../../etc/./x"), Path::new("etc/x"));
        assert_eq!(relative("/"), Path::new("id"));
        assert_eq!(relative("system.slice:docker:abc"), Path::new("system.slice:docker:abc"));
        assert_eq!(path(None, "id"), Path::new("id"));
    }

    #[test]
    fn oom_kills_are_read_from_memory_events() {
        assert_eq!(parse_oom_kills("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(parse_oom_kills("low 0\n"), None);
    }
}
