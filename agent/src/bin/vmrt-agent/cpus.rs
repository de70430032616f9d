//! The guest's further vCPUs. The kernel boots with one; the others are brought online when the first container has been
//! made, one at a time, because each holds up the agent while the kernel starts it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::Error;
use crate::machine;

/// How long a container's start waits for vCPUs, so that its program finds all of them: enough for a machine of the usual
/// size. Those that take longer come up while it runs.
const PATIENCE: Duration = Duration::from_secs(2);

/// How far that has come.
#[derive(Debug)]
pub(crate) enum Cpus {
    /// Only the first is online.
    First,
    /// They are coming.
    Coming {
        /// `devices/system/cpu` of a sysfs.
        directory: OwnedFd,
        /// The one whose turn it is.
        next: u32,
    },
    /// All that there are.
    All,
}

impl Cpus {
    /// Begins, once.
    pub(crate) fn begin(&mut self) -> Result<(), Error> {
        if matches!(self, Self::First) {
            *self = Self::All;
            let system = machine::detached("sysfs")?;
            let flags = OFlags::DIRECTORY | OFlags::RDONLY;
            *self = Self::Coming { directory: machine::open_in(system.as_fd(), "devices/system/cpu", flags)?, next: 1 };
        }
        Ok(())
    }

    /// Whether [`Cpus::start_next`] has more to do.
    pub(crate) fn are_coming(&self) -> bool {
        matches!(self, Self::Coming { .. })
    }

    /// Brings the next one online.
    pub(crate) fn start_next(&mut self) -> Result<(), Error> {
        let Self::Coming { directory, next } = self else { return Ok(()) };
        let cpu = *next;
        *next += 1;
        match machine::write_in(directory.as_fd(), &format!("cpu{cpu}/online"), b"1") {
            Ok(()) => Ok(()),
            Err(error) => {
                *self = Self::All;
                if error == Errno::NOENT { Ok(()) } else { Err(Error::at(format!("bring vCPU {cpu} online"))(error)) }
            }
        }
    }

    /// Brings them all online, as far as a start may wait for it.
    pub(crate) fn start_more(&mut self) -> Result<(), Error> {
        let end = Instant::now() + PATIENCE;
        while self.are_coming() && Instant::now() < end {
            self.start_next()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coming(files: &[&str]) -> (tempfile::TempDir, Cpus) {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::create_dir_all(directory.path().join(file).parent().unwrap()).unwrap();
            std::fs::write(directory.path().join(file), "0").unwrap();
        }
        let opened = std::fs::File::open(directory.path()).unwrap();
        (directory, Cpus::Coming { directory: opened.into(), next: 1 })
    }

    #[test]
    fn one_after_the_other_until_there_are_no_more() {
        let (directory, mut cpus) = coming(&["cpu1/online", "cpu2/online"]);
        let read = |file: &str| std::fs::read_to_string(directory.path().join(file)).unwrap();
        cpus.start_next().unwrap();
        assert_eq!((read("cpu1/online"), read("cpu2/online")), ("1".to_owned(), "0".to_owned()));
        cpus.start_more().unwrap();
        assert_eq!(read("cpu2/online"), "1");
        assert!(!cpus.are_coming());
    }

    #[test]
    fn one_that_does_not_come_is_the_last() {
        let (_directory, mut cpus) = coming(&["cpu1/online/not"]);
        assert!(cpus.start_more().unwrap_err().to_string().contains("vCPU 1"));
        assert!(!cpus.are_coming());
    }
}
