//! Requests that concern a container's cgroup: freeze and thaw, processes, statistics, limits.

use std::os::fd::AsFd;

use agent::{Failure, FailureKind, ProcessList, Response};
use oci_spec::runtime::LinuxResources;
use rustix::event::epoll::EventFlags;

use super::requests::Answer;
use super::{Agent, Fatal};
use crate::container::cgroup::{Cgroup, Settings};
use crate::container::{Freeze, process_list};
use crate::error::Error;
use crate::events::Source;
use crate::machine::clock;

impl Agent {
    /// Begins to freeze or thaw a container's processes. A process that waits for a file of the host freezes only when
    /// it has received the data, so the agent must not wait for that: the reply follows when all processes have
    /// changed.
    pub(super) fn freeze(&mut self, call: u64, id: &str, frozen: bool) -> Result<Answer, Error> {
        let step = format!("{} container {id}", if frozen { "freeze" } else { "thaw" });
        let cgroup = &self.running_container(id)?.cgroup;
        let events = cgroup.events().map_err(Error::at(step.as_str()))?;
        self.poll.watch(&events, Source::Cgroup, EventFlags::PRI)?;
        cgroup.set_frozen(frozen).map_err(Error::at(step))?;
        if let Some(container) = self.containers.get_mut(id) {
            container.freezes.push(Freeze { call, frozen, events });
        }
        Ok(Answer::Later)
    }

    /// Answers the calls for freezes and thaws that are complete, superseded, or impossible because the container
    /// stopped.
    pub(super) fn answer_freezes(&mut self) -> Result<(), Fatal> {
        let mut answers = Vec::new();
        for (id, container) in &mut self.containers {
            let earlier = container.freezes.len().saturating_sub(1);
            answers.extend(container.freezes.drain(..earlier).map(|freeze| (freeze.call, Err(superseded(id)))));
            if container.init.is_none() {
                answers.extend(container.freezes.drain(..).map(|freeze| (freeze.call, Err(stopped(id).into()))));
            } else if container.freezes.iter().any(is_complete) {
                answers.extend(container.freezes.drain(..).map(|freeze| (freeze.call, Ok(Response::Done))));
            }
        }
        for (call, result) in answers {
            self.reply(call, result)?;
        }
        Ok(())
    }

    /// Lists the processes of a container.
    pub(super) fn list_processes(&self, id: &str) -> Result<Answer, Error> {
        let cgroup = &self.running_container(id)?.cgroup;
        let pids = cgroup.processes().map_err(Error::at(format!("list container {id}")))?;
        let processes = process_list::list(self.files()?.proc(), &pids)?;
        Ok(Answer::Now(Response::Processes(ProcessList { uptime_ms: clock::uptime_ns() / 1_000_000, processes })))
    }

    /// Reads the resource usage of a container.
    pub(super) fn read_statistics(&self, id: &str) -> Result<Answer, Error> {
        let files = self.running_container(id)?.cgroup.statistics();
        let files = files.map_err(Error::at(format!("read the cgroup of container {id}")))?;
        Ok(Answer::Now(Response::Statistics(files)))
    }

    /// Changes a container's limits.
    pub(super) fn update(&self, id: &str, resources: &LinuxResources) -> Result<Answer, Error> {
        let settings = Settings::new(resources)?;
        self.running_container(id)?.cgroup.update(&settings)?;
        Ok(Answer::Now(Response::Done))
    }

    /// Adapts the memory limit of all containers to `plugged` bytes of hot-plugged memory.
    pub(super) fn set_plugged_memory(&self, plugged: u64) -> Result<Answer, Error> {
        self.files()?.cgroups().set_plugged_memory(plugged)?;
        Ok(Answer::Now(Response::Done))
    }
}

fn is_complete(freeze: &Freeze) -> bool {
    Cgroup::is_frozen(freeze.events.as_fd()).is_ok_and(|frozen| frozen == freeze.frozen)
}

/// The failure of a call that a later freeze or thaw of the same container supersedes.
fn superseded(id: &str) -> Failure {
    let step = format!("freeze or thaw container {id}");
    Failure { kind: FailureKind::WrongState, step, cause: "a later request came before it was done".into() }
}

fn stopped(id: &str) -> Error {
    Error::WrongState { container: format!("container {id}"), state: "stopped" }
}
