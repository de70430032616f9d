//! The guest's vCPUs. The kernel boots with one, and knows how many there may be at most; the VMM says how many there are. They
//! are brought online, or taken offline, one at a time, because each holds up the agent, and not before the first container
//! has been made.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use agent::Failure;
use rustix::fs::OFlags;

use super::file_systems;
use crate::error::Error;
use crate::sys::files;

/// How long a container's start waits for vCPUs, so that its program finds all of them: enough for a machine of the usual
/// size. Those that take longer come up while it runs.
const START_DELAY_LIMIT: Duration = Duration::from_secs(2);

/// How many there are, and how many there shall be. Their numbers have no gaps.
#[derive(Debug)]
pub(crate) struct Cpus {
    /// Whether anything may be done about it yet.
    enabled: bool,
    /// `devices/system/cpu` of a sysfs, once it was needed.
    directory: Option<OwnedFd>,
    online: u32,
    requested: u32,
    /// Calls that are take_completed when there are as many as requested.
    calls: Vec<u64>,
    failure: Option<Failure>,
}

impl Cpus {
    /// The first, which is there.
    pub(crate) fn new() -> Self {
        Self { enabled: false, directory: None, online: 1, requested: 1, calls: Vec::new(), failure: None }
    }

    /// Lets what is requested happen.
    pub(crate) fn enable(&mut self) {
        self.enabled = true;
    }

    /// Notes that there shall be `count`, for a call. Whoever requested another number before gets this one.
    pub(crate) fn request(&mut self, call: u64, count: u32) {
        self.requested = count.max(1);
        self.calls.push(call);
    }

    /// Whether [`Cpus::step`] has more to do.
    pub(crate) fn are_changing(&self) -> bool {
        self.enabled && self.online != self.requested
    }

    /// Brings the next one online, or takes the last one offline. Where that fails, there are as many as requested.
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

    /// How many are online then.
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

    /// Brings them online as far as a start may wait for it.
    pub(crate) fn complete_before_start(&mut self) {
        let end = Instant::now() + START_DELAY_LIMIT;
        while self.are_changing() && Instant::now() < end {
            self.step();
        }
    }

    /// The calls that have their answer, and the answer.
    pub(crate) fn take_completed(&mut self) -> (Vec<u64>, Result<(), Failure>) {
        if self.online != self.requested {
            return (Vec::new(), Ok(()));
        }
        (std::mem::take(&mut self.calls), self.failure.take().map_or(Ok(()), Err))
    }
}

fn system_cpus() -> Result<OwnedFd, Error> {
    let system = file_systems::detached("sysfs")?;
    files::open_at(system.as_fd(), "devices/system/cpu", OFlags::DIRECTORY | OFlags::RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that finds the files of further vCPUs in a directory.
    fn enabled(further: u32) -> (tempfile::TempDir, Cpus) {
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
    fn nothing_happens_before_it_may() {
        let (directory, mut cpus) = enabled(1);
        cpus.enabled = false;
        cpus.request(7, 2);
        cpus.complete_before_start();
        assert_eq!((online(&directory).as_str(), cpus.take_completed()), ("0", (Vec::new(), Ok(()))));
        cpus.enable();
        cpus.complete_before_start();
        assert_eq!((online(&directory).as_str(), cpus.take_completed()), ("1", (vec![7], Ok(()))));
    }

    #[test]
    fn one_after_the_other_comes_and_goes() {
        let (directory, mut cpus) = enabled(3);
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
    fn where_one_does_not_come_those_before_it_stay() {
        let (directory, mut cpus) = enabled(1);
        cpus.request(5, 3);
        cpus.complete_before_start();
        assert_eq!(online(&directory), "1");
        let (calls, result) = cpus.take_completed();
        assert_eq!((calls, result.unwrap_err().step), (vec![5], "take vCPU 2 online".to_owned()));
        cpus.request(6, 2);
        assert_eq!(cpus.take_completed(), (vec![6], Ok(())));
    }
}
