//! Requests about a container as a whole: stop it and let it go on, look at it, change its limits.

use std::os::fd::AsFd;

use agent::{Failure, FailureKind, ProcessList, Response};
use oci_spec::runtime::LinuxResources;
use rustix::event::epoll::EventFlags;

use crate::container::cgroup::{Cgroup, Settings};
use crate::container::{Container, Freezing, listing};
use crate::error::Error;
use crate::event_loop::{Agent, Fatal, Source, uptime_ns};
use crate::requests::Answer;

impl Agent {
    /// Begins to stop a container's processes, or to let them go on. One that waits for a file of the host stops when it
    /// has got it, so the agent cannot wait for that itself.
    pub(crate) fn freeze(&mut self, call: u64, id: &str, frozen: bool) -> Result<Answer, Error> {
        let step = format!("{} container {id}", if frozen { "freeze" } else { "thaw" });
        let cgroup = &self.running(id)?.cgroup;
        let events = cgroup.events().map_err(Error::at(step.as_str()))?;
        self.watch(events.as_fd(), Source::Cgroup, EventFlags::PRI | EventFlags::ET)?;
        cgroup.set_frozen(frozen).map_err(Error::at(step))?;
        if let Some(container) = self.containers.get_mut(id) {
            container.freezing.push(Freezing { call, frozen, events });
        }
        Ok(Answer::Later)
    }

    /// Answers who waits for a container's processes to have stopped, or to go on, and waits no longer.
    pub(crate) fn answer_freezing(&mut self) -> Result<(), Fatal> {
        let mut answers = Vec::new();
        for (id, container) in &mut self.containers {
            let earlier = container.freezing.len().saturating_sub(1);
            answers.extend(container.freezing.drain(..earlier).map(|before| (before.call, Err(overtaken(id)))));
            if container.init.is_none() {
                answers.extend(container.freezing.drain(..).map(|wait| (wait.call, Err(stopped(id).into()))));
            } else if container.freezing.iter().any(Freezing::is_over) {
                answers.extend(container.freezing.drain(..).map(|wait| (wait.call, Ok(Response::Done))));
            }
        }
        for (call, result) in answers {
            self.reply(call, result)?;
        }
        Ok(())
    }

    /// The processes of a container.
    pub(crate) fn list_processes(&self, id: &str) -> Result<Answer, Error> {
        let pids = self.running(id)?.cgroup.processes().map_err(Error::at(format!("list container {id}")))?;
        let processes = listing::list(self.files()?.proc(), &pids)?;
        Ok(Answer::Now(Response::Processes(ProcessList { uptime_ms: uptime_ns() / 1_000_000, processes })))
    }

    /// What a container uses.
    pub(crate) fn read_statistics(&self, id: &str) -> Result<Answer, Error> {
        let files = self.running(id)?.cgroup.statistics();
        let files = files.map_err(Error::at(format!("read the cgroup of container {id}")))?;
        Ok(Answer::Now(Response::Statistics(files)))
    }

    /// Sets a container's limits anew.
    pub(crate) fn update(&self, id: &str, resources: &LinuxResources) -> Result<Answer, Error> {
        let settings = Settings::new(resources)?;
        self.running(id)?.cgroup.update(&settings)?;
        Ok(Answer::Now(Response::Done))
    }

    /// Lets containers use what the machine has now.
    pub(crate) fn follow_memory(&self, plugged: u64) -> Result<Answer, Error> {
        self.files()?.cgroups().follow_memory(plugged)?;
        Ok(Answer::Now(Response::Done))
    }

    /// A container whose first process is there.
    fn running(&self, id: &str) -> Result<&Container, Error> {
        self.init_of(id)?;
        self.container(id)
    }
}

impl Freezing {
    fn is_over(&self) -> bool {
        Cgroup::is_frozen(self.events.as_fd()).is_ok_and(|frozen| frozen == self.frozen)
    }
}

/// The call that wanted the opposite, or the same, and came before.
fn overtaken(id: &str) -> Failure {
    let step = format!("freeze or thaw container {id}");
    Failure { kind: FailureKind::WrongState, step, cause: "a later request came before it was done".into() }
}

fn stopped(id: &str) -> Error {
    Error::WrongState { container: format!("container {id}"), state: "stopped" }
}
