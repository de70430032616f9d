//! The creation of containers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent::{AttachedInterface, CreateContainer, ProcessId};
use rustix::event::epoll::EventFlags;
use rustix::thread::ThreadNameSpaceType;

use super::Agent;
use super::exec::check_terminal;
use super::requests::Answer;
use crate::container::cgroup::Cgroup;
use crate::container::namespaces::Join;
use crate::container::namespaces::user::UserNamespaces;
use crate::container::plan::ContainerPlan;
use crate::container::rootfs::devices::Nodes;
use crate::container::spawn::join::Shared;
use crate::container::special_files::SpecialFiles;
use crate::container::{Container, spawn};
use crate::error::Error;
use crate::events::Source;
use crate::machine::file_systems;
use crate::network::name_server::NameServer;
use crate::network::{interfaces, namespace};
use crate::processes::Spawned;
use crate::processes::stdio::{self, ChildStdio};
use crate::sys::files::duplicate;

impl Agent {
    /// Makes a container. The reply follows when its first process is set up.
    pub(super) fn create(&mut self, call: u64, create: &CreateContainer) -> Result<Answer, Error> {
        let id = &create.config.id;
        if self.containers.contains_key(id) {
            return Err(Error::Exists(format!("container {id}")));
        }
        let mut plan = ContainerPlan::new(create)?;
        check_terminal(&plan.process, &create.stdio)?;
        self.mount_file_systems()?;
        let special_files = SpecialFiles::make(id, &create.special_files, &self.poll)?;
        plan.prepare_devices()?;
        let mut user_namespaces = UserNamespaces::new(self.files()?);
        plan.mounts.iter_mut().try_for_each(|mount| mount.prepare_id_mapping(&mut user_namespaces))?;
        let (child, host) = stdio::make(&create.stdio, &self.host, &self.null)?;
        let nodes = prepare_for_users(&plan, &child)?;
        let (cgroup, spawned) = self.spawn_init(&plan, &child)?;
        let pid = spawned.pid;
        let configured = self.configure_init(&spawned, &plan, &create.interfaces);
        let watched = cgroup
            .memory_events()
            .map_or(Ok(()), |events| self.poll.watch(events, Source::Memory(pid.cast_unsigned()), EventFlags::PRI));
        let name_server = create.name_server.map(|port| {
            let process = self.process_in_network(&plan.joins, &spawned)?;
            self.make_name_server(process.as_fd(), &cgroup, port)
        });
        let (name_server, served) = match name_server.transpose() {
            Ok(name_server) => (name_server, Ok(())),
            Err(error) => (None, Err(error)),
        };
        let container = Container {
            namespaces: plan.namespaces,
            init: Some(pid),
            cgroup,
            freezes: Vec::new(),
            empty_events: None,
            seccomp: plan.seccomp,
            personality: plan.personality,
            affinity: plan.process.exec_affinity.clone(),
            special_files,
            name_server,
            id_maps: plan.id_maps,
            _nodes: nodes,
        };
        self.containers.insert(id.clone(), container);
        let name = ProcessId { container: id.clone(), exec: None };
        self.register(call, name, spawned, host, &plan.process);
        if let Err(error) = watched.and(served).and(configured) {
            self.abort(pid, error);
        }
        Ok(Answer::Later)
    }

    fn spawn_init(&self, plan: &ContainerPlan, stdio: &ChildStdio) -> Result<(Cgroup, Spawned), Error> {
        let cgroup = Cgroup::make(self.files()?.cgroups().directory(), &plan.cgroup, &plan.settings)?;
        let spawned = self
            .shared_namespaces(plan)
            .and_then(|shared| spawn::spawn_init(self.guest_fds()?, plan, &shared, &cgroup, stdio));
        match spawned {
            Ok(spawned) => Ok((cgroup, spawned)),
            Err(error) => {
                // The cgroup is empty, so its removal does not fail.
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }

    /// The namespaces of other containers that this one joins.
    fn shared_namespaces(&self, plan: &ContainerPlan) -> Result<Vec<Shared<'_>>, Error> {
        let shared = |join: &Join| Ok((join.kind, self.init_of(&join.container)?.pidfd.as_fd()));
        plan.joins.iter().map(shared).collect()
    }

    /// A pidfd of a process in the new container's network namespace. If that namespace belongs to another container,
    /// the new process may not have joined it yet, so the process is the other container's.
    fn process_in_network(&self, joins: &[Join], spawned: &Spawned) -> Result<OwnedFd, Error> {
        let join = joins.iter().find(|join| join.kind == ThreadNameSpaceType::NETWORK);
        let process = match join {
            Some(join) => &self.init_of(&join.container)?.pidfd,
            None => &spawned.pidfd,
        };
        duplicate(process)
    }

    /// Configures what the new process waits for: the id mappings, without which it has no permissions, the interfaces,
    /// which its kernel parameters may name, and those parameters that it may not set itself.
    fn configure_init(
        &self,
        spawned: &Spawned,
        plan: &ContainerPlan,
        interfaces: &[AttachedInterface],
    ) -> Result<(), Error> {
        if !plan.awaits_agent {
            return Ok(());
        }
        if let Some(maps) = plan.id_maps.as_ref().filter(|_| plan.namespaces.owns(ThreadNameSpaceType::USER)) {
            maps.write(self.files()?.proc(), spawned.pid, "the user namespace")?;
        }
        interfaces::attach(self.guest_fds()?.proc, (spawned.pid, spawned.pidfd.as_fd()), interfaces)?;
        self.set_agent_sysctls(spawned, plan)?;
        spawned.channel.release().map_err(Error::at("release the new process"))
    }

    fn set_agent_sysctls(&self, spawned: &Spawned, plan: &ContainerPlan) -> Result<(), Error> {
        if plan.agent_sysctls.is_empty() {
            return Ok(());
        }
        let process = self.process_in_network(&plan.joins, spawned)?;
        let proc = self.guest_fds()?.proc;
        namespace::run_in(proc, process.as_fd(), || plan.agent_sysctls.iter().try_for_each(|sysctl| sysctl.set(proc)))
    }

    /// Gives a container access to the name server behind `port` of the host; `process` is in its network namespace.
    pub(super) fn make_name_server(
        &self,
        process: BorrowedFd<'_>,
        cgroup: &Cgroup,
        port: u32,
    ) -> Result<NameServer, Error> {
        NameServer::new(self.guest_fds()?.proc, process, cgroup.directory(), port, &self.poll)
    }
}

/// Prepares what a container with a user namespace cannot make itself: the owner of its streams, device nodes, and the
/// file systems that have to be visible to it.
fn prepare_for_users(plan: &ContainerPlan, stdio: &ChildStdio) -> Result<Option<Nodes>, Error> {
    let Some(maps) = &plan.id_maps else { return Ok(None) };
    file_systems::mount_proc_and_sys()?;
    stdio.set_owner(maps.uid(plan.process.uid)?)?;
    plan.devices.as_deref().map(|devices| Nodes::make(&plan.container, devices, maps)).transpose()
}
