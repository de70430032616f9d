//! Network interfaces and name servers of running containers.

use std::os::fd::AsFd;

use agent::{AttachedInterface, InterfaceChange, Response};

use super::Agent;
use super::lookup::find_name_server;
use super::requests::Answer;
use crate::error::Error;
use crate::network::interfaces;

impl Agent {
    /// Attaches an interface to a container, and gives it access to a name server if `name_server` is the port of one.
    pub(super) fn add_interface(
        &mut self,
        id: &str,
        interface: &AttachedInterface,
        name_server: Option<u32>,
    ) -> Result<Answer, Error> {
        let process = self.init_of(id)?.pidfd.as_fd();
        let container = self.container(id)?;
        let pid = container.init.ok_or_else(|| Error::NotFound(format!("container {id}")))?;
        interfaces::attach(self.guest_fds()?.proc, (pid, process), std::slice::from_ref(interface))?;
        if let (Some(port), None) = (name_server, &container.name_server) {
            let server = self.make_name_server(process, &container.cgroup, port)?;
            self.containers.entry(id.to_owned()).and_modify(|container| container.name_server = Some(server));
        }
        Ok(Answer::Now(Response::Done))
    }

    /// Changes interfaces of a container.
    pub(super) fn change_interfaces(&self, id: &str, changes: &[InterfaceChange]) -> Result<Answer, Error> {
        interfaces::change(self.guest_fds()?.proc, self.init_of(id)?.pidfd.as_fd(), changes)?;
        Ok(Answer::Now(Response::Done))
    }

    /// Detaches the interface `name` from a container.
    pub(super) fn remove_interface(&self, id: &str, name: &str) -> Result<Answer, Error> {
        interfaces::detach(self.guest_fds()?.proc, self.init_of(id)?.pidfd.as_fd(), name)?;
        Ok(Answer::Now(Response::Done))
    }

    /// Forwards the queries that wait at a name server's socket.
    pub(super) fn receive_queries(&mut self, id: u32) {
        if let Some(server) = find_name_server(self.containers.values(), id) {
            self.queries.receive(server, &self.host, &self.poll, &mut self.buffer);
        }
    }

    /// Receives a part of the answer to a query.
    pub(super) fn receive_answer(&mut self, id: u32) {
        let find_server = |server| find_name_server(self.containers.values(), server);
        self.queries.receive_answer(id, find_server, &mut self.buffer);
    }
}
