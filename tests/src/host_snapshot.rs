//! The leak check: compares the state of the machine before and after a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::eventually;

/// Everything that a runtime could leave behind, one line for each item.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostSnapshot(BTreeSet<String>);

impl HostSnapshot {
    /// Lists processes, mounts, cgroups, sockets, network devices and the files in `/run`.
    #[must_use]
    pub fn take() -> Self {
        let mut found = BTreeSet::new();
        found.extend(processes());
        found.extend(lines("/proc/self/mountinfo", 4).map(|point| format!("mount {point}")));
        found.extend(lines("/proc/net/unix", 7).map(|path| format!("socket {path}")));
        found.extend(lines("/proc/net/dev", 0).map(|device| format!("network device {device}")));
        walk(Path::new("/sys/fs/cgroup"), "cgroup", true, &mut found);
        walk(Path::new("/run"), "file", false, &mut found);
        Self(found)
    }

    /// Waits until the machine has nothing that this snapshot does not have, except lines that `is_expected` accepts.
    ///
    /// # Panics
    ///
    /// Panics if the machine has more after `timeout`.
    pub fn assert_restored(&self, timeout: Duration, is_expected: impl Fn(&str) -> bool) {
        let mut added = Vec::new();
        let clean = eventually(timeout, || {
            added = Self::take().added_since(self);
            added.retain(|line| !is_expected(line));
            added.is_empty().then_some(())
        });
        assert!(clean.is_some(), "left behind: {added:#?}");
    }

    /// The lines of this snapshot that are not in `before`.
    #[must_use]
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Processes that have a program. Kernel threads start and end independently of the tests.
fn processes() -> impl Iterator<Item = String> {
    let pids =
        fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter_map(|pid| {
        let program = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let is_zombie = state.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
        let words = String::from_utf8_lossy(&program).replace('\0', " ");
        match (is_zombie, program.is_empty()) {
            (true, _) => Some(format!("zombie {pid}")),
            (false, true) => None,
            (false, false) => Some(format!("process {pid} {words}")),
        }
    })
}

/// One field of each line of a file of `/proc`, if the line has it.
fn lines(path: &str, field: usize) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_whitespace().nth(field).map(str::to_string));
    fields.collect::<Vec<_>>().into_iter()
}

/// Adds every directory below a path, and every file unless `directories_only`. Does not follow links.
fn walk(path: &Path, kind: &str, directories_only: bool, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory || !directories_only {
            found.insert(format!("{kind} {}", entry.path().display()));
        }
        if is_directory {
            walk(&entry.path(), kind, directories_only, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_process_is_seen() {
        let before = HostSnapshot::take();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let added = crate::eventually(crate::TIMEOUT, || {
            let added = HostSnapshot::take().added_since(&before);
            added.iter().any(|line| line.ends_with("sleep 60 ")).then_some(added)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(added.is_some());
    }

    #[test]
    fn a_new_socket_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let before = HostSnapshot::take();
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let line = format!("socket {}", path.display());
        assert!(HostSnapshot::take().added_since(&before).contains(&line));
    }
}
