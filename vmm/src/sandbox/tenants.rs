//! Containers besides the main one. Each belongs to the connection over which its files were shared or it was made, and does
//! not outlive it.

use std::collections::{BTreeMap, BTreeSet};

use agent::FailureKind;

use super::processes::Absent;
use super::{Purpose, Sandbox, failure, init_of};

/// Whose they are.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    owners: BTreeMap<String, u32>,
    /// Those whose connection has ended, and that are still dying.
    leaving: BTreeSet<String>,
}

impl Sandbox {
    /// Notes that a container is this client's, unless it is somebody's already.
    pub(super) fn move_in(&mut self, container: &str, client: u32) {
        if container != self.main.container {
            self.tenants.owners.entry(container.to_owned()).or_insert(client);
        }
    }

    /// The client is gone: what it made ends.
    pub(super) fn move_out(&mut self, client: u32) {
        let owners = self.tenants.owners.iter().filter(|(_, owner)| **owner == client);
        let orphans: Vec<String> = owners.map(|(container, _)| container.clone()).collect();
        for container in orphans {
            self.tenants.owners.remove(&container);
            let process = init_of(&container);
            if self.processes.check_alive(&process).is_ok() {
                let request = agent::Request::Signal { process, signal: nix::libc::SIGKILL, all: true };
                self.ask(request, format!("end container {container}"), Purpose::Own);
            }
            self.tenants.leaving.insert(container);
        }
    }

    /// Forgets those that have ended.
    pub(super) fn settle_tenants(&mut self) {
        let ended = |container: &&String| self.processes.check_alive(&init_of(container)).is_err();
        let gone: Vec<String> = self.tenants.leaving.iter().filter(ended).cloned().collect();
        for container in gone {
            self.tenants.leaving.remove(&container);
            if self.processes.check_alive(&init_of(&container)) == Err(Absent::Ended) {
                let request = agent::Request::Delete { container: container.clone() };
                self.ask(request, format!("delete container {container}"), Purpose::Own);
            }
            self.forget(&container);
        }
    }

    /// Forgets a container and takes its shares away.
    pub(super) fn forget(&mut self, container: &str) {
        let mut waiters = self.processes.remove_container(container, &self.ports);
        waiters.extend(self.out_of_memory.remove(container));
        let step = format!("wait for a process of container {container}");
        self.fail_waiters(waiters, &failure(FailureKind::NotFound, step, "the container was deleted"));
        self.shares.remove_container(container);
    }
}
