//! Containers other than the main one. Each belongs to the client that shared its files or created it, and ends when that
//! client disconnects.

use std::collections::{BTreeMap, BTreeSet};

/// Owners of the further containers.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct FurtherContainers {
    /// Event token of each container's client.
    owners: BTreeMap<String, u32>,
    /// Containers whose client has disconnected and whose first process may still run.
    ending: BTreeSet<String>,
}

impl FurtherContainers {
    /// Makes `client` the owner of a container that has none.
    pub(in crate::sandbox) fn register(&mut self, container: &str, client: u32) {
        self.owners.entry(container.to_owned()).or_insert(client);
    }

    /// Marks the containers of a client that disconnected as ending, and returns them.
    pub(in crate::sandbox) fn release_client(&mut self, client: u32) -> Vec<String> {
        let owners = self.owners.iter().filter(|(_, owner)| **owner == client);
        let containers: Vec<String> = owners.map(|(container, _)| container.clone()).collect();
        for container in &containers {
            self.owners.remove(container);
            self.ending.insert(container.clone());
        }
        containers
    }

    /// Removes and returns the ending containers for which `has_ended` is true.
    pub(in crate::sandbox) fn take_ended(&mut self, has_ended: impl Fn(&str) -> bool) -> Vec<String> {
        let ended: Vec<String> = self.ending.iter().filter(|container| has_ended(container)).cloned().collect();
        for container in &ended {
            self.ending.remove(container);
        }
        ended
    }
}
