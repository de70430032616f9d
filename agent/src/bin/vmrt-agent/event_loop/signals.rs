//! Signals to processes and to whole containers.

use agent::{ProcessId, Response};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::Agent;
use super::requests::Answer;
use crate::container::Container;
use crate::error::Error;
use crate::processes::{Phase, display_name};

impl Agent {
    /// Sends a signal to a process, or to every process of its container.
    pub(super) fn signal(&mut self, process: &ProcessId, signal: i32, all: bool) -> Result<Answer, Error> {
        let step = || format!("send signal {signal} to {}", display_name(process));
        if signal == 0 {
            // Signal 0 only checks whether the process exists.
            return self.process(process).map(|_| Answer::Now(Response::Done));
        }
        let number = Signal::from_named_raw(signal).or_else(|| real_time(signal));
        let number = number.ok_or_else(|| Error::at(step())(Errno::INVAL))?;
        if all {
            let container = self.container(&process.container)?;
            signal_all(container, number).map_err(Error::at(step()))?;
            return Ok(Answer::Now(Response::Done));
        }
        let target = self.process(process)?;
        // The first process of a pid namespace ignores signals that it does not handle. A process that waits for its
        // start handles none, so a signal that would end its program has to kill it.
        let ends = matches!(target.phase, Phase::Created) && ends_by_default(number);
        let number = if ends { Signal::KILL } else { number };
        rustix::process::pidfd_send_signal(&target.pidfd, number).map_err(Error::at(step()))?;
        if number == Signal::KILL && process.exec.is_none() {
            // No process outlives the first one. If the others ran on, they would delay its end, because it needs a CPU
            // for that.
            self.container(&process.container)?.cgroup.kill().map_err(Error::at(step()))?;
        }
        Ok(Answer::Now(Response::Done))
    }
}

/// `ESRCH` if the container is stopped, because it has no processes.
fn signal_all(container: &Container, signal: Signal) -> rustix::io::Result<()> {
    if container.init.is_none() {
        return Err(Errno::SRCH);
    }
    if signal == Signal::KILL {
        return container.cgroup.kill();
    }
    for pid in container.cgroup.processes()?.into_iter().filter_map(Pid::from_raw) {
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the default action of the signal ends a program.
fn ends_by_default(signal: Signal) -> bool {
    let harmless = [
        Signal::CHILD,
        Signal::CONT,
        Signal::URG,
        Signal::WINCH,
        Signal::STOP,
        Signal::TSTP,
        Signal::TTIN,
        Signal::TTOU,
    ];
    !harmless.contains(&signal)
}

fn real_time(signal: i32) -> Option<Signal> {
    let known = (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal);
    // SAFETY: the number is one of the real-time signals, which the C library leaves to programs.
    known.then(|| unsafe { Signal::from_raw_unchecked(signal) })
}
