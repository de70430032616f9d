//! Requests to the agent, and its replies and events.

use agent::{Event, ExitStatus, Failure, ProcessId, Response};

use super::{Controller, Purpose};
use crate::control::Reply;
use crate::sandbox::agent_connection::{AgentError, AgentMessage};
use crate::sandbox::template_saver::TemplateSaver;
use crate::timeline;

impl Controller {
    /// Sends a request to the agent. If that is not possible, the request fails at once.
    pub(super) fn call_agent(&mut self, request: agent::Request, step: String, purpose: Purpose) {
        if let Some(failure) = self.closed.clone() {
            self.on_failure(purpose, failure);
        } else if let Err((purpose, failure)) = self.agent.call(request, step, purpose) {
            self.on_failure(purpose, failure);
        }
    }

    /// Like [`Controller::call_agent`], without a timeout.
    pub(super) fn call_agent_without_timeout(&mut self, request: agent::Request, step: String, purpose: Purpose) {
        if let Some(failure) = self.closed.clone() {
            self.on_failure(purpose, failure);
        } else if let Err((purpose, failure)) = self.agent.call_without_timeout(request, step, purpose) {
            self.on_failure(purpose, failure);
        }
    }

    /// Handles all messages that were received.
    pub(super) fn read_agent(&mut self) {
        loop {
            match self.agent.next_message() {
                Ok(Some(message)) => self.on_message(message),
                Ok(None) => return,
                Err(error) => return self.on_agent_error(&error),
            }
        }
    }

    /// The agent's connection is unusable. If the machine has ended, that is the cause to report.
    pub(super) fn on_agent_error(&mut self, error: &AgentError) {
        self.check_machine_exit();
        self.fail_guest("talk to the guest", error);
    }

    fn on_message(&mut self, message: AgentMessage<Purpose>) {
        match message {
            AgentMessage::Hello(hello) => {
                tracing::info!(kernel = hello.kernel, "the agent is ready");
                match self.is_restored {
                    // The times of its boot are those of another machine.
                    true => timeline::mark("agent ready"),
                    false => timeline::mark_guest(&hello),
                }
                self.set_guest_clock();
            }
            AgentMessage::Reply { context, result: Ok(response) } => self.on_response(context, response),
            AgentMessage::Reply { context, result: Err(failure) } => self.on_failure(context, failure),
            AgentMessage::Event(Event::Exited { process, status }) => self.on_exit(&process, status),
            AgentMessage::Event(Event::OutOfMemory { container }) => self.on_oom_kill(&container),
        }
    }

    fn on_exit(&mut self, process: &ProcessId, status: ExitStatus) {
        tracing::debug!(?process, ?status, "a process ended");
        if *process == self.main {
            timeline::mark("container ended");
        }
        if !self.processes.set_ended(process, status, &self.ports) {
            tracing::debug!(?process, "the guest reported the end of an unknown process");
        }
    }

    fn on_response(&mut self, purpose: Purpose, response: Response) {
        let (caller, reply) = match purpose {
            Purpose::CreateProcess(caller, process) => {
                self.processes.set_created(&process);
                if process == self.main {
                    self.is_created = true;
                    timeline::mark("container created");
                }
                (caller, reply(response))
            }
            Purpose::Start(caller, process) => {
                self.processes.set_running(&process);
                if process == self.main {
                    timeline::mark("container started");
                }
                (caller, Reply::Done)
            }
            Purpose::Freeze(caller, process, frozen) => {
                self.processes.set_paused(&process, frozen);
                (caller, Reply::Done)
            }
            Purpose::Delete(caller, container) => {
                self.remove_container(&container);
                (caller, Reply::Done)
            }
            Purpose::Other(caller) => (caller, reply(response)),
            Purpose::ReadClock(reading) => return self.on_clock_reading(&reading, &response),
            Purpose::PrepareTemplate => return self.template_saver.iter().for_each(TemplateSaver::save),
            Purpose::Internal => return,
        };
        self.clients.answer(caller, Ok(reply));
    }

    /// A request to the agent failed, or could not be sent.
    pub(super) fn on_failure(&mut self, purpose: Purpose, failure: Failure) {
        match purpose {
            Purpose::CreateProcess(caller, process) => {
                let waiters = self.processes.remove(&process, &self.ports);
                self.fail_callers(waiters, &failure);
                self.clients.answer(caller, Err(failure));
            }
            Purpose::Start(caller, _)
            | Purpose::Freeze(caller, ..)
            | Purpose::Delete(caller, _)
            | Purpose::Other(caller) => {
                self.clients.answer(caller, Err(failure));
            }
            Purpose::ReadClock(_) => self.end_clock_comparison(),
            Purpose::PrepareTemplate => self.fail_guest("make a template", &failure),
            Purpose::Internal => tracing::debug!(%failure, "a request of the VMM to the agent failed"),
        }
    }
}

fn reply(response: Response) -> Reply {
    match response {
        // No client can ask for the guest's clock.
        Response::Done | Response::Clock { .. } => Reply::Done,
        Response::Process { pid } => Reply::Process { pid },
        Response::Processes(list) => Reply::Processes(list),
        Response::Statistics(files) => Reply::Statistics(files),
    }
}
