//! What happens: in the guest, to the machine, to the VMM's process, and to time.

use std::time::Instant;

use agent::{Event, Failure, Response};
use nix::sys::signal::Signal;

use super::guest::{GuestError, Heard};
use super::{Purpose, Sandbox};
use crate::control::Reply;
use crate::timeline;

impl Sandbox {
    pub(super) fn hear_guest(&mut self) {
        loop {
            match self.guest.hear() {
                Ok(Some(heard)) => self.understand(heard),
                Ok(None) => return,
                Err(error) => return self.lose_guest(&error),
            }
        }
    }

    pub(super) fn lose_guest(&mut self, error: &GuestError) {
        // The machine may have more to say about it than that its agent is gone.
        self.hear_machine();
        self.die("talk to the guest", error);
    }

    fn understand(&mut self, heard: Heard<Purpose>) {
        match heard {
            Heard::Hello(hello) => {
                tracing::info!(kernel = hello.kernel, "the agent is ready");
                timeline::mark_guest(&hello);
                self.set_clock();
            }
            Heard::Reply { context, result: Ok(response) } => self.succeed(context, response),
            Heard::Reply { context, result: Err(failure) } => self.fail(context, failure),
            Heard::Event(Event::Exited { process, status }) => {
                tracing::debug!(?process, ?status, "a process ended");
                if process == self.main {
                    timeline::mark("container ended");
                }
                if !self.processes.ended(&process, status, &self.ports) {
                    tracing::debug!(?process, "the guest tells the end of a process that is not known");
                }
            }
            Heard::Event(Event::OutOfMemory { container }) => {
                tracing::info!(container, "a process of a container was killed for want of memory");
                self.tell_out_of_memory(&container);
            }
        }
    }

    /// A guest may tell this of containers that do not exist.
    fn tell_out_of_memory(&mut self, container: &str) {
        if self.processes.status(&super::init_of(container)).is_none() {
            return;
        }
        if container == self.main.container {
            self.mirror_death();
        }
        let (waiters, count) = self.out_of_memory.happened(container);
        for waiter in waiters {
            self.clients.answer(waiter, Ok(Reply::OutOfMemory(count)));
        }
    }

    fn succeed(&mut self, purpose: Purpose, response: Response) {
        let (caller, reply) = match purpose {
            Purpose::Make(caller, process) => {
                self.processes.made(&process);
                if process == self.main {
                    self.created = true;
                    timeline::mark("container created");
                }
                (caller, make_reply(response))
            }
            Purpose::Start(caller, process) => {
                self.processes.started(&process);
                if process == self.main {
                    timeline::mark("container started");
                }
                (caller, Reply::Done)
            }
            Purpose::Freeze(caller, process, frozen) => {
                self.processes.paused(&process, frozen);
                (caller, Reply::Done)
            }
            Purpose::Delete(caller, container) => {
                self.forget(&container);
                (caller, Reply::Done)
            }
            Purpose::Other(caller) => (caller, make_reply(response)),
            Purpose::ReadClock(question) => return self.hear_clock(&question, &response),
            Purpose::Own => return,
        };
        self.clients.answer(caller, Ok(reply));
    }

    pub(super) fn fail(&mut self, purpose: Purpose, failure: Failure) {
        match purpose {
            Purpose::Make(caller, process) => {
                let waiters = self.processes.remove(&process, &self.ports);
                self.fail_waiters(waiters, &failure);
                self.clients.answer(caller, Err(failure));
            }
            Purpose::Start(caller, _)
            | Purpose::Freeze(caller, ..)
            | Purpose::Delete(caller, _)
            | Purpose::Other(caller) => {
                self.clients.answer(caller, Err(failure));
            }
            Purpose::ReadClock(_) => self.end_comparison(),
            Purpose::Own => tracing::debug!(%failure, "the guest refused"),
        }
    }

    pub(super) fn expire(&mut self) {
        self.armed = None;
        // The timer's count is of no interest; reading it makes the timer quiet.
        let _ = self.timer.wait();
        if self.lost.is_some() {
            return;
        }
        match self.guest.expire(Instant::now()) {
            Ok(late) => late.into_iter().for_each(|(purpose, failure)| self.fail(purpose, failure)),
            Err(error) => self.die("boot the guest", &error),
        }
    }

    pub(super) fn hear_machine(&mut self) {
        if let Some(exit) = self.machine.take() {
            self.die("run the guest", &exit);
        }
    }

    pub(super) fn forward_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::SIGWINCH => self.resize(),
                signal if self.processes.check_alive(&self.main).is_ok() && self.created => {
                    let (process, number) = (self.main.clone(), signal as i32);
                    let request = agent::Request::Signal { process, signal: number, all: false };
                    self.ask(request, format!("forward {signal}"), Purpose::Own);
                }
                Signal::SIGUSR1 | Signal::SIGUSR2 => {}
                signal => self.interrupt(signal),
            }
        }
    }

    fn resize(&mut self) {
        if let Some(size) = self.processes.terminal_size(&self.main) {
            let request = agent::Request::Resize { process: self.main.clone(), size };
            self.ask(request, "resize the terminal".to_owned(), Purpose::Own);
        }
    }
}

fn make_reply(response: Response) -> Reply {
    match response {
        // Nobody but the VMM asks for the guest's time.
        Response::Done | Response::Clock { .. } => Reply::Done,
        Response::Process { pid } => Reply::Process { pid },
        Response::Processes(list) => Reply::Processes(list),
        Response::Statistics(files) => Reply::Statistics(files),
    }
}
