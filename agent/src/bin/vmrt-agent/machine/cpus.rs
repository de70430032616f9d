//! The guest's vCPUs. The kernel boots with one and knows the possible maximum; the VMM sets the current number. vCPUs
//! are brought online or taken offline one at a time, because each change blocks the agent. The first change waits for
//! the creation of the first container.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use agent::Failure;
use rustix::fs::OFlags;

use super::file_systems;
use crate::error::Error;
use crate::sys::files;

/// Maximum time that a container's start waits for vCPUs, so that its program finds all of them. It is enough for a
/// machine of common size. The remaining vCPUs come online while the program runs.
const START_DELAY_LIMIT: Duration = Duration::from_secs(2);

/// The current and the requested number of vCPUs. vCPU numbers are consecutive.
#[derive(Debug)]
pub(crate) struct Cpus {
    /// Whether changes are allowed.
    enabled: bool,
    /// `devices/system/cpu` of a sysfs, opened on first use.
    directory: Option<OwnedFd>,
    online: u32,
    requested: u32,
    /// Calls to answer when the requested number is online.
    calls: Vec<u64>,
    failure: Option<Failure>,
}

impl Cpus {
    /// The boot CPU only.
    pub(crate) fn new() -> Self {
        Self { enabled: false, directory: None, online: 1, requested: 1, calls: Vec::new(), failure: None }
    }

    /// Allows changes.
    pub(crate) fn enable(&mut self) {
        self.enabled = true;
    }

    /// Requests `count` vCPUs for a call. A later request replaces an earlier one; both calls are answered when the
    /// later one is complete.
    pub(crate) fn request(&mut self, call: u64, count: u32) {
        self.requested = count.max(1);
        self.calls.push(call);
    }

    /// Whether [`Cpus::step`] has work to do.
    pub(crate) fn are_changing(&self) -> bool {
        self.enabled && self.online != self.requested
    }

    /// Brings the next vCPU online, or takes the last one offline. On a failure the current number becomes the
    /// requested one.
    pub(crate) fn step(&mut self) {
        if !self.are_changing() {
            return;
        }
        match self.change() {
            Ok(online) => self.online = online,
            Err(error) => {
                self.failure = Some(error.into());
                self.requested = self.online;
            }
        }
    }

    /// Returns the new number of online vCPUs.
    fn change(&mut self) -> Result<u32, Error> {
        let (cpu, on) = if self.online < self.requested { (self.online, true) } else { (self.online - 1, false) };
        let directory = match &self.directory {
            Some(directory) => directory,
            None => self.directory.insert(system_cpus()?),
        };
        let content: &[u8] = if on { b"1" } else { b"0" };
        let step = || format!("take vCPU {cpu} {}", if on { "online" } else { "offline" });
        files::write_at(directory.as_fd(), &format!("cpu{cpu}/online"), content).map_err(Error::at(step()))?;
        Ok(if on { cpu + 1 } else { cpu })
    }

    /// Changes vCPUs until the request is complete, for at most [`START_DELAY_LIMIT`].
    pub(crate) fn complete_before_start(&mut self) {
        let end = Instant::now() + START_DELAY_LIMIT;
        while self.are_changing() && Instant::now() < end {
            self.step();
        }
    }

    /// Removes and returns the calls whose request is complete, with its result.
    pub(crate) fn take_completed(&mut self) -> (Vec<u64>, Result<(), Failure>) {
        if self.online != self.requested {
            return (Vec::new(), Ok(()));
        }
        (std::mem::take(&mut self.calls), self.failure.take().map_or(Ok(()), Err))
    }
}

fn system_cpus() -> Result<OwnedFd, Error> {
    let system = file_systems::make_detached("sysfs")?;
    files::open_at(system.as_fd(), "devices/system/cpu", OFlags::DIRECTORY | OFlags::RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a directory that contains files for `further` vCPUs.
    fn cpus_in_directory(further: u32) -> (tempfile::TempDir, Cpus) {
        let directory = tempfile::tempdir().unwrap();
        for cpu in 1..=further {
            std::fs::create_dir(directory.path().join(format!("cpu{cpu}"))).unwrap();
            std::fs::write(directory.path().join(format!("cpu{cpu}/online")), "0").unwrap();
        }
        let opened = std::fs::File::open(directory.path()).unwrap();
        let mut cpus = Cpus { directory: Some(opened.into()), ..Cpus::new() };
        cpus.enable();
        (directory, cpus)
    }

    fn online(directory: &tempfile::TempDir) -> String {
        let read = |cpu| std::fs::read_to_string(directory.path().join(format!("cpu{cpu}/online")));
        (1..).map_while(|cpu| read(cpu).ok()).collect()
    }

    #[test]
    fn vcpus_do_not_change_before_changes_are_enabled() {
        let (directory, mut cpus) = cpus_in_directory(1);
        cpus.enabled = false;
        cpus.request(7, 2);
        cpus.complete_before_start();
        assert_eq!((online(&directory).as_str(), cpus.take_completed()), ("0", (Vec::new(), Ok(()))));
        cpus.enable();
        cpus.complete_before_start();
        assert_eq!((online(&directory).as_str(), cpus.take_completed()), ("1", (vec![7], Ok(()))));
    }

    #[test]
    fn vcpus_come_online_and_go_offline_one_at_a_time() {
        let (directory, mut cpus) = cpus_in_directory(3);
        cpus.request(1, 3);
        cpus.step();
        assert_eq!(online(&directory), "100");
        assert!(cpus.are_changing());
        cpus.complete_before_start();
        assert_eq!((online(&directory).as_str(), cpus.are_changing()), ("110", false));
        assert_eq!(cpus.take_completed(), (vec![1], Ok(())));
        cpus.request(2, 0);
        cpus.request(3, 1);
        cpus.step();
        assert_eq!((online(&directory).as_str(), cpus.take_completed()), ("100", (Vec::new(), Ok(()))));
        cpus.complete_before_start();
        assert_eq!((online(&directory).as_str(), cpus.take_completed()), ("000", (vec![2, 3], Ok(()))));
    }

    #[test]
    fn a_failure_leaves_the_vcpus_before_it_online() {
        let (directory, mut cpus) = cpus_in_directory(1);
        cpus.request(5, 3);
        cpus.complete_before_start();
        assert_eq!(online(&directory), "1");
        let (calls, result) = cpus.take_completed();
        assert_eq!((calls, result.unwrap_err().step), (vec![5], "take vCPU 2 online".to_owned()));
        cpus.request(6, 2);
        assert_eq!(cpus.take_completed(), (vec![6], Ok(())));
    }
}
