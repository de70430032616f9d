//! Access to the agent's state by the ids in requests.

use std::os::fd::AsFd;

use agent::ProcessId;
use rustix::io::Errno;

use super::Agent;
use crate::container::Container;
use crate::error::Error;
use crate::machine::file_systems::{FileSystems, GuestFds};
use crate::network::name_server::NameServer;
use crate::processes::{Process, display_name};
use crate::streams::listener::Listener;

impl Agent {
    /// The descriptors that are needed to make a process.
    pub(super) fn guest_fds(&self) -> Result<GuestFds<'_>, Error> {
        let files = self.files()?;
        Ok(GuestFds { proc: files.proc(), agent: self.pidfd.as_fd() })
    }

    /// The file systems that the agent works with.
    pub(super) fn files(&self) -> Result<&FileSystems, Error> {
        self.files.as_ref().ok_or_else(|| Error::at("use the guest's file systems")(Errno::NODEV))
    }

    /// The container with this id.
    pub(super) fn container(&self, id: &str) -> Result<&Container, Error> {
        self.containers.get(id).ok_or_else(|| Error::NotFound(format!("container {id}")))
    }

    /// The first process of a container, unless it has ended.
    pub(super) fn init_of(&self, id: &str) -> Result<&Process, Error> {
        let init = self.container(id)?.init.and_then(|pid| self.processes.get(&pid));
        let init = init.filter(|process| process.status.is_none());
        init.ok_or_else(|| Error::WrongState { container: format!("container {id}"), state: "stopped" })
    }

    /// A container whose first process has not ended.
    pub(super) fn running_container(&self, id: &str) -> Result<&Container, Error> {
        self.init_of(id)?;
        self.container(id)
    }

    /// The process with this id, unless it has ended.
    pub(super) fn process(&self, id: &ProcessId) -> Result<&Process, Error> {
        let mut processes = self.processes.values().filter(|process| process.id == *id && process.status.is_none());
        processes.next().ok_or_else(|| Error::NotFound(display_name(id)))
    }
}

/// The listener with this id: of a special file or of a name server.
pub(super) fn find_listener<'a>(containers: impl Iterator<Item = &'a Container>, id: u32) -> Option<&'a Listener> {
    let mut listeners = containers.flat_map(|container| {
        let name_server = container.name_server.as_ref().map(|server| &server.listener);
        container.special_files.listeners().iter().chain(name_server)
    });
    listeners.find(|listener| listener.id() == id)
}

/// The name server with this id.
pub(super) fn find_name_server<'a>(
    mut containers: impl Iterator<Item = &'a Container>,
    id: u32,
) -> Option<&'a NameServer> {
    containers.find_map(|container| container.name_server.as_ref().filter(|server| server.id() == id))
}
