//! The guest's vCPUs. The kernel boots with one, and knows how many there may be at most; the VMM says how many there are. They
//! are brought online, or taken offline, one at a time, because each holds up the agent, and not before the first container
//! has been made.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use agent::Failure;
use rustix::fs::OFlags;

use crate::error::Error;
use crate::machine;

/// How long a container's start waits for vCPUs, so that its program finds all of them: enough for a machine of the usual
/// size. Those that take longer come up while it runs.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many there are, and how many there shall be. Their numbers have no gaps.
#[derive(Debug)]
pub(crate) struct Cpus {
    /// Whether anything may be done about it yet.
    begun: bool,
    /// `devices/system/cpu` of a sysfs, once it was needed.
    directory: Option<OwnedFd>,
    online: u32,
    wanted: u32,
    /// Calls that are answered when there are as many as wanted.
    calls: Vec<u64>,
    failure: Option<Failure>,
}

impl Cpus {
    /// The first, which is there.
    pub(crate) fn new() -> Self {
        Self { begun: false, directory: None, online: 1, wanted: 1, calls: Vec::new(), failure: None }
    }

    /// Lets what is wanted happen.
    pub(crate) fn begin(&mut self) {
        self.begun = true;
    }

    /// Notes that there shall be `count`, for a call. Whoever wanted another number before gets this one.
    pub(crate) fn want(&mut self, call: u64, count: u32) {
        self.wanted = count.max(1);
        self.calls.push(call);
    }

    /// Whether [`Cpus::step`] has more to do.
    pub(crate) fn are_changing(&self) -> bool {
        self.begun && self.online != self.wanted
    }

    /// Brings the next one online, or takes the last one offline. Where that fails, there are as many as wanted.
    pub(crate) fn step(&mut self) {
        if !self.are_changing() {
            return;
        }
        match self.change() {
            Ok(online) => self.online = online,
            Err(error) => {
                self.failure = Some(error.into());
                self.wanted = self.online;
            }
        }
    }

    /// How many are online then.
    fn change(&mut self) -> Result<u32, Error> {
        let (cpu, on) = if self.online < self.wanted { (self.online, true) } else { (self.online - 1, false) };
        let directory = match &self.directory {
            Some(directory) => directory,
            None => self.directory.insert(system_cpus()?),
        };
        let content: &[u8] = if on { b"1" } else { b"0" };
        let step = || format!("take vCPU {cpu} {}", if on { "online" } else { "offline" });
        machine::write_in(directory.as_fd(), &format!("cpu{cpu}/online"), content).map_err(Error::at(step()))?;
        Ok(if on { cpu + 1 } else { cpu })
    }

    /// Brings them online as far as a start may wait for it.
    pub(crate) fn hurry(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.are_changing() && Instant::now() < end {
            self.step();
        }
    }

    /// The calls that have their answer, and the answer.
    pub(crate) fn answered(&mut self) -> (Vec<u64>, Result<(), Failure>) {
        if self.online != self.wanted {
            return (Vec::new(), Ok(()));
        }
        (std::mem::take(&mut self.calls), self.failure.take().map_or(Ok(()), Err))
    }
}

fn system_cpus() -> Result<OwnedFd, Error> {
    let system = machine::detached("sysfs")?;
    machine::open_in(system.as_fd(), "devices/system/cpu", OFlags::DIRECTORY | OFlags::RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that finds the files of further vCPUs in a directory.
    fn begun(further: u32) -> (tempfile::TempDir, Cpus) {
        let directory = tempfile::tempdir().unwrap();
        for cpu in 1..=further {
            std::fs::create_dir(directory.path().join(format!("cpu{cpu}"))).unwrap();
            std::fs::write(directory.path().join(format!("cpu{cpu}/online")), "0").unwrap();
        }
        let opened = std::fs::File::open(directory.path()).unwrap();
        let mut cpus = Cpus { directory: Some(opened.into()), ..Cpus::new() };
        cpus.begin();
        (directory, cpus)
    }

    fn online(directory: &tempfile::TempDir) -> String {
        let read = |cpu| std::fs::read_to_string(directory.path().join(format!("cpu{cpu}/online")));
        (1..).map_while(|cpu| read(cpu).ok()).collect()
    }

    #[test]
    fn nothing_happens_before_it_may() {
        let (directory, mut cpus) = begun(1);
        cpus.begun = false;
        cpus.want(7, 2);
        cpus.hurry();
        assert_eq!((online(&directory).as_str(), cpus.answered()), ("0", (Vec::new(), Ok(()))));
        cpus.begin();
        cpus.hurry();
        assert_eq!((online(&directory).as_str(), cpus.answered()), ("1", (vec![7], Ok(()))));
    }

    #[test]
    fn one_after_the_other_comes_and_goes() {
        let (directory, mut cpus) = begun(3);
        cpus.want(1, 3);
        cpus.step();
        assert_eq!(online(&directory), "100");
        assert!(cpus.are_changing());
        cpus.hurry();
        assert_eq!((online(&directory).as_str(), cpus.are_changing()), ("110", false));
        assert_eq!(cpus.answered(), (vec![1], Ok(())));
        cpus.want(2, 0);
        cpus.want(3, 1);
        cpus.step();
        assert_eq!((online(&directory).as_str(), cpus.answered()), ("100", (Vec::new(), Ok(()))));
        cpus.hurry();
        assert_eq!((online(&directory).as_str(), cpus.answered()), ("000", (vec![2, 3], Ok(()))));
    }

    #[test]
    fn where_one_does_not_come_those_before_it_stay() {
        let (directory, mut cpus) = begun(1);
        cpus.want(5, 3);
        cpus.hurry();
        assert_eq!(online(&directory), "1");
        let (calls, result) = cpus.answered();
        assert_eq!((calls, result.unwrap_err().step), (vec![5], "take vCPU 2 online".to_owned()));
        cpus.want(6, 2);
        assert_eq!(cpus.answered(), (vec![6], Ok(())));
    }
}
