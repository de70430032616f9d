//! How the sandbox ends.
//!
//! The guest is not asked to power off: its file system writes through to the host, so there is nothing left to be saved
//! when a container's processes are gone, and the machine ends with the VMM's process.

use std::error::Error;
use std::time::{Duration, Instant};

use agent::{ExitStatus, Failure, FailureKind};
use nix::sys::signal::Signal;

use super::clients::Caller;
use super::{GUEST_DIED, Sandbox, failure};
use crate::control::Reply;

/// How long other processes may hold up the end of the sandbox: their ends, their output, and a death that the host counts. A reader of theirs that
/// does not read must not keep it alive; the main process's own output is waited for without limit, as it would be if
/// the process had blocked in `write`.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// How long clients may take to read their last answers, and readers what a guest that died had written.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(2);

/// How far the end has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Ending {
    #[default]
    Not,
    /// The main process ended; the ends and the output of others are still coming.
    Draining { code: u8, deadline: Instant },
    /// Everybody has been told; the last answers are being read.
    Farewell { code: u8, deadline: Instant },
    /// The exit status was handed to the VMM's main function.
    Over,
}

impl Ending {
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Draining { deadline, .. } | Self::Farewell { deadline, .. } => Some(deadline),
            Self::Not | Self::Over => None,
        }
    }
}

impl Sandbox {
    /// Tells the end of processes whose output has been handed over.
    pub(super) fn tell_ends(&mut self) {
        for told in self.processes.tell() {
            for waiter in told.waiters {
                self.clients.answer(waiter, Ok(Reply::Exited(told.status)));
            }
            if told.process == self.main && matches!(self.ending, Ending::Not) {
                let deadline = Instant::now() + DRAIN_DEADLINE;
                self.ending = Ending::Draining { code: told.status.code(), deadline };
            }
        }
    }

    /// The guest is of no use any more.
    pub(super) fn die(&mut self, step: &str, cause: &(dyn Error + 'static)) {
        self.die_of(&failure(FailureKind::GuestDied, step, crate::chain(cause)));
    }

    /// As [`Sandbox::die`]. Once the main process has ended, that its guest is gone too is no news.
    pub(super) fn die_of(&mut self, failure: &Failure) {
        if self.lost.is_some() {
            return;
        }
        if self.processes.end_of(&self.main).is_none() {
            tracing::error!("{failure}");
            self.ending = Ending::Farewell { code: GUEST_DIED, deadline: Instant::now() + FAREWELL_DEADLINE };
        }
        self.lose(failure);
    }

    /// A signal that has no process to be passed on to.
    pub(super) fn interrupt(&mut self, signal: Signal) {
        if !matches!(self.ending, Ending::Not) {
            return;
        }
        if let Some(status) = self.processes.end_of(&self.main) {
            // Only its output is still waited for.
            return self.bid_farewell(status.code(), &main_ended());
        }
        let code = ExitStatus::Signaled(u8::try_from(signal as i32).unwrap_or(0)).code();
        let failure = failure(FailureKind::GuestDied, "start the main container", format!("{signal} came before"));
        tracing::error!("{failure}");
        self.bid_farewell(code, &failure);
    }

    /// Takes the next step, if it is time for it.
    pub(super) fn advance_end(&mut self, now: Instant) {
        if let Ending::Draining { code, deadline } = self.ending
            && (now >= deadline || !(self.processes.is_draining() || self.mirror.is_busy()))
        {
            self.bid_farewell(code, &main_ended());
        }
        if let Ending::Farewell { code, deadline } = self.ending
            && (now >= deadline || (self.clients.is_flushed() && self.processes.is_drained()))
        {
            self.ending = Ending::Over;
            // The main function waits for it; where it does not, the process is ending anyway.
            let _ = self.outcome.send(code);
        }
    }

    pub(super) fn fail_waiters(&mut self, waiters: Vec<Caller>, failure: &Failure) {
        for waiter in waiters {
            self.clients.answer(waiter, Err(failure.clone()));
        }
    }

    fn bid_farewell(&mut self, code: u8, failure: &Failure) {
        self.ending = Ending::Farewell { code, deadline: Instant::now() + FAREWELL_DEADLINE };
        self.lose(failure);
    }

    /// Nothing new can begin, and nobody will be answered by the guest any more.
    fn lose(&mut self, failure: &Failure) {
        if self.lost.is_some() {
            return;
        }
        self.lost = Some(failure.clone());
        for purpose in self.guest.abandon() {
            self.fail(purpose, failure.clone());
        }
        let mut waiters = self.processes.abandon();
        waiters.extend(self.out_of_memory.abandon());
        waiters.extend(self.resizing.abandon());
        self.fail_waiters(waiters, failure);
    }
}

fn main_ended() -> Failure {
    failure(FailureKind::WrongState, "reach the sandbox", "its main container has ended")
}
