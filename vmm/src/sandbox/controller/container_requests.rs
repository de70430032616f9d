//! Requests that create processes: of a new container, or further ones in a container.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use agent::{ContainerRequest, CreateContainer, Exec, Failure, FailureKind, ProcessId};
use oci_spec::runtime::Process;

use super::requests::Outcome;
use super::{Controller, Purpose};
use crate::control::{NewContainer, Status, StdioFds};
use crate::sandbox::clients::Caller;
use crate::sandbox::containers::{Streams, first_process};
use crate::sandbox::failures::{absent_failure, failure};
use crate::timeline;

impl Controller {
    /// Creates a container. `fds` are the descriptors of its streams, then its taps, then its sockets, as many of each as
    /// [`NewContainer::counts`] says.
    pub(super) fn create_container(&mut self, caller: Caller, new: NewContainer, mut fds: Vec<OwnedFd>) -> Outcome {
        let step = format!("create container {}", new.config.id);
        let process = first_process(&new.config.id);
        let [streams, interfaces, _] = new.counts();
        let sockets = fds.split_off(streams + interfaces);
        let taps = fds.split_off(streams);
        let attached = self.attach_interfaces(new.interfaces, taps);
        let opened = attached.and_then(|interfaces| {
            let stdio = self.open_streams(&process, &step, new.stdio, fds)?;
            Ok((interfaces, stdio))
        });
        let (interfaces, stdio) = match opened {
            Ok(opened) => opened,
            Err(failure) => return Some(Err(failure)),
        };
        timeline::mark("container asked for");
        let special_files = self.attach_special_files(&process, new.special_files, sockets);
        let name_server = new.name_server.then(|| self.attach_name_server(&process));
        let create = CreateContainer { config: new.config, stdio, interfaces, special_files, name_server };
        let purpose = Purpose::CreateProcess(caller, process);
        self.call_agent(agent::Request::Create(Box::new(create)), step, purpose);
        None
    }

    /// Starts a container's program when the machine has all of its memory, so that the program does not see less.
    pub(super) fn start_container(&mut self, caller: Caller, request: ContainerRequest) -> Outcome {
        self.is_started = true;
        if self.memory_resize.is_growing_to_size() {
            self.delayed_starts.push((caller, request));
            return None;
        }
        self.relay(caller, request)
    }

    /// Starts the programs that have waited for the machine's memory.
    pub(super) fn run_delayed_starts(&mut self) {
        for (caller, request) in std::mem::take(&mut self.delayed_starts) {
            if let Some(result) = self.relay(caller, request) {
                self.clients.answer(caller, result);
            }
        }
    }

    /// Executes a further process, in `cgroup` below the container's if there is one.
    pub(super) fn exec(
        &mut self,
        caller: Caller,
        process: ProcessId,
        (spec, cgroup): (Process, Option<PathBuf>),
        (stdio, fds): (StdioFds, Vec<OwnedFd>),
    ) -> Outcome {
        let step = format!("execute a process in container {}", process.container);
        let container = first_process(&process.container);
        let checked = match (self.processes.check_alive(&container), &process.exec) {
            (Err(absent), _) => Err(absent_failure(&container, absent)),
            (_, None) => Err(failure(FailureKind::InvalidSpec, step.as_str(), "the process has no id")),
            _ => self.open_streams(&process, &step, stdio, fds),
        };
        match checked {
            Ok(stdio) => {
                let request = agent::Request::Exec(Box::new(Exec { process: process.clone(), spec, stdio, cgroup }));
                let purpose = Purpose::CreateProcess(caller, process);
                match self.processes.status(&container) {
                    // The freezer stops the new process too, so the agent answers only after the container was thawed.
                    Some(Status::Paused) => self.call_agent_without_timeout(request, step, purpose),
                    _ => self.call_agent(request, step, purpose),
                }
                None
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    /// Adds a process to the table and opens the ports of its streams.
    fn open_streams(
        &mut self,
        process: &ProcessId,
        step: &str,
        stdio: StdioFds,
        fds: Vec<OwnedFd>,
    ) -> Result<agent::Stdio, Failure> {
        if let Some(failure) = &self.closed {
            return Err(failure.clone());
        }
        if self.processes.is_taken(process) {
            return Err(failure(FailureKind::Exists, step, "the id is in use"));
        }
        let (streams, stdio) = Streams::open(&self.ports, stdio, fds);
        self.processes.add(process.clone(), streams);
        Ok(stdio)
    }
}
