//! The end of the sandbox.
//!
//! The guest is not asked to power off. Its file system writes through to the host, so nothing is left to be saved when a
//! container's processes have ended. The machine ends with the VMM's process.

use std::error::Error;
use std::time::{Duration, Instant};

use agent::{ExitStatus, Failure, FailureKind};
use nix::sys::signal::Signal;

use super::Controller;
use crate::control::Reply;
use crate::helper::Task;
use crate::machine::exit::MachineExit;
use crate::sandbox::clients::Caller;
use crate::sandbox::failures::{GUEST_DIED, failure};

/// Time in which other processes may end and write their output, and the host may count an OOM kill, before the sandbox
/// ends. A reader of theirs that does not read must not keep the sandbox alive. The main process's own output has no
/// timeout, as if the process had blocked in `write`.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Time clients have to read their last answers, and readers to read the output of a guest that died.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Progress of the end. `code` is the VMM's exit status.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Ending {
    /// The main process runs, or its output is not all written.
    #[default]
    NotStarted,
    /// The main process ended. Other processes are still ending or writing output.
    Draining { code: u8, deadline: Instant },
    /// All requests were answered. Clients are still reading the answers.
    Flushing { code: u8, deadline: Instant },
    /// The exit status was sent to the VMM's main function.
    Finished,
}

impl Ending {
    /// When [`Controller::advance_ending`] has to be called next.
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Draining { deadline, .. } | Self::Flushing { deadline, .. } => Some(deadline),
            Self::NotStarted | Self::Finished => None,
        }
    }
}

impl Controller {
    /// Answers the callers that wait for processes that have ended and whose output was written.
    pub(super) fn report_exits(&mut self) {
        for report in self.processes.take_exit_reports() {
            for caller in report.waiters {
                self.clients.answer(caller, Ok(Reply::Exited(report.status)));
            }
            if report.process == self.main && matches!(self.ending, Ending::NotStarted) {
                let deadline = Instant::now() + DRAIN_TIMEOUT;
                self.ending = Ending::Draining { code: report.status.code(), deadline };
            }
        }
    }

    /// Ends the sandbox if the machine has ended.
    pub(super) fn check_machine_exit(&mut self) {
        match self.machine.take() {
            None => {}
            Some(MachineExit::Saved) => {
                let cause = "its machine was saved as a template";
                self.start_flush(0, &failure(FailureKind::WrongState, "reach the sandbox", cause));
            }
            Some(exit) => self.fail_guest("run the guest", &exit),
        }
    }

    /// Ends the sandbox because the inherited client has disconnected.
    pub(super) fn on_creator_lost(&mut self) {
        let cause = "the client that started it has disconnected";
        self.fail_guest_with(&failure(FailureKind::GuestDied, "supervise the sandbox", cause));
    }

    /// Ends the sandbox because the guest is unusable.
    pub(super) fn fail_guest(&mut self, step: &str, cause: &(dyn Error + 'static)) {
        self.fail_guest_with(&failure(FailureKind::GuestDied, step, crate::chain(cause)));
    }

    /// After the main process has ended, a failure of the guest no longer changes the exit status.
    fn fail_guest_with(&mut self, failure: &Failure) {
        if self.closed.is_some() {
            return;
        }
        if self.processes.exit_status(&self.main).is_none() {
            tracing::error!("{failure}");
            self.ending = Ending::Flushing { code: GUEST_DIED, deadline: Instant::now() + FLUSH_TIMEOUT };
        }
        self.close(failure);
    }

    /// Ends the sandbox because of a signal that cannot be forwarded: the main process has not been created, or has ended.
    pub(super) fn end_by_signal(&mut self, signal: Signal) {
        if !matches!(self.ending, Ending::NotStarted) {
            return;
        }
        if let Some(status) = self.processes.exit_status(&self.main) {
            // Its output was not all written.
            return self.start_flush(status.code(), &main_ended());
        }
        let code = ExitStatus::Signaled(u8::try_from(signal as i32).unwrap_or(0)).code();
        let failure = failure(FailureKind::GuestDied, "start the main container", format!("{signal} came before"));
        tracing::error!("{failure}");
        self.start_flush(code, &failure);
    }

    /// Goes to the next state if its condition is met or the deadline has passed.
    pub(super) fn advance_ending(&mut self, now: Instant) {
        if let Ending::Draining { code, deadline } = self.ending
            && (now >= deadline || !(self.processes.is_draining() || self.helper.is_running(Task::CountOomKill)))
        {
            self.start_flush(code, &main_ended());
        }
        if let Ending::Flushing { code, deadline } = self.ending
            && (now >= deadline || (self.clients.is_flushed() && self.processes.is_drained()))
        {
            self.ending = Ending::Finished;
            // An error means that the main function has returned already.
            let _ = self.exit_status.send(code);
        }
    }

    /// Answers each caller with `failure`.
    pub(super) fn fail_callers(&mut self, callers: Vec<Caller>, failure: &Failure) {
        for caller in callers {
            self.clients.answer(caller, Err(failure.clone()));
        }
    }

    fn start_flush(&mut self, code: u8, failure: &Failure) {
        self.ending = Ending::Flushing { code, deadline: Instant::now() + FLUSH_TIMEOUT };
        self.close(failure);
    }

    /// Fails all pending requests, and from now on each new one that needs the guest.
    fn close(&mut self, failure: &Failure) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(failure.clone());
        for purpose in self.agent.take_pending() {
            self.on_failure(purpose, failure.clone());
        }
        let mut callers = self.processes.take_waiters();
        callers.extend(self.oom_kills.take_waiters());
        callers.extend(self.memory_resize.take_waiter());
        callers.extend(std::mem::take(&mut self.delayed_starts).into_iter().map(|(caller, _)| caller));
        self.fail_callers(callers, failure);
    }
}

fn main_ended() -> Failure {
    failure(FailureKind::WrongState, "reach the sandbox", "its main container has ended")
}
