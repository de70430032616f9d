//! Ends and removes containers other than the main one.

use agent::FailureKind;

use super::{Controller, Purpose};
use crate::sandbox::containers::{Absent, first_process};
use crate::sandbox::failures::failure;

impl Controller {
    /// Makes `client` the owner of a further container that has none.
    pub(super) fn register_container(&mut self, container: &str, client: u32) {
        if container != self.main.container {
            self.further_containers.register(container, client);
        }
    }

    /// Kills the containers of a client that disconnected.
    pub(super) fn end_containers_of(&mut self, client: u32) {
        for container in self.further_containers.release_client(client) {
            let process = first_process(&container);
            if self.processes.check_alive(&process).is_ok() {
                let request = agent::Request::Container(agent::ContainerRequest::Signal {
                    process,
                    signal: nix::libc::SIGKILL,
                    all: true,
                });
                self.call_agent(request, format!("end container {container}"), Purpose::Internal);
            }
        }
    }

    /// Deletes the containers whose client has disconnected and whose first process has ended since.
    pub(super) fn remove_ended_containers(&mut self) {
        let processes = &self.processes;
        let has_ended = |container: &str| processes.check_alive(&first_process(container)).is_err();
        for container in self.further_containers.take_ended(has_ended) {
            if self.processes.check_alive(&first_process(&container)) == Err(Absent::Ended) {
                let request =
                    agent::Request::Container(agent::ContainerRequest::Delete { container: container.clone() });
                self.call_agent(request, format!("delete container {container}"), Purpose::Internal);
            }
            self.remove_container(&container);
        }
    }

    /// Removes a container's processes, waiters and shares.
    pub(super) fn remove_container(&mut self, container: &str) {
        let mut waiters = self.processes.remove_container(container, &self.ports);
        waiters.extend(self.oom_kills.remove_container(container));
        let step = format!("wait for a process of container {container}");
        self.fail_callers(waiters, &failure(FailureKind::NotFound, step, "the container was deleted"));
        self.shares.remove_container(container);
    }
}
