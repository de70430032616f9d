//! What the VMM asks for.

use std::os::fd::{AsFd, OwnedFd};

use agent::{
    AttachedInterface, Call, CreateContainer, Exec, Failure, FromAgent, ProcessId, Request, Response, TerminalSize,
};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use rustix::thread::ThreadNameSpaceType;

use crate::clock;
use crate::connection::ConnectionError;
use crate::container::cgroup::{self, Cgroup};
use crate::container::devices::Nodes;
use crate::container::init::ChildStdio;
use crate::container::namespaces::Join;
use crate::container::plan::ContainerPlan;
use crate::container::process::ProcessPlan;
use crate::container::user::UserNamespaces;
use crate::container::{self, Container, Guest, Shared, Spawned, terminal};
use crate::error::Error;
use crate::event_loop::{Agent, Fatal, Source};
use crate::machine;
use crate::network;
use crate::processes::{self, HostStdio, Phase, Process, duplicate};

/// When a call is answered.
pub(crate) enum Answer {
    /// With this.
    Now(Response),
    /// When what it asks for has happened.
    Later,
}

impl Agent {
    /// Does what a call asks for, and answers it unless that has to wait.
    pub(crate) fn answer(&mut self, call: Call) -> Result<(), Fatal> {
        let result = match call.request {
            Request::Create(create) => self.create(call.id, &create),
            Request::AddInterface { container, interface, name_server } => {
                self.add_interface(&container, &interface, name_server)
            }
            Request::ChangeInterfaces { container, changes } => {
                network::change(self.guest()?, self.init_of(&container)?.pidfd.as_fd(), &changes)
                    .map(|()| Answer::Now(Response::Done))
            }
            Request::RemoveInterface { container, name } => self.remove_interface(&container, &name),
            Request::Start { container } => self.start(call.id, &container),
            Request::Exec(exec) => self.exec(call.id, &exec),
            Request::Signal { process, signal, all } => self.signal(&process, signal, all),
            Request::Resize { process, size } => self.resize(&process, size),
            Request::Freeze { container, frozen } => self.freeze(call.id, &container, frozen),
            Request::Processes { container } => self.list_processes(&container),
            Request::Statistics { container } => self.read_statistics(&container),
            Request::Update { container, resources } => self.update(&container, &resources),
            Request::SetCpus { count } => {
                self.cpus.want(call.id, count);
                Ok(Answer::Later)
            }
            Request::ReadClock => Ok(Answer::Now(Response::Clock { guest_ns: clock::time_ns() })),
            Request::AdjustClock { missing_ns, set } => {
                clock::adjust(missing_ns, set).map(|()| Answer::Now(Response::Done))
            }
            Request::FollowMemory { plugged } => self.follow_memory(plugged),
            Request::Delete { container } => self.delete(&container),
            Request::PowerOff => machine::power_off(),
        };
        match result {
            Ok(Answer::Later) => Ok(()),
            Ok(Answer::Now(response)) => Ok(self.reply(call.id, Ok(response))?),
            Err(error) => Ok(self.reply(call.id, Err(error.into()))?),
        }
    }

    /// Sends the end of a call.
    pub(crate) fn reply(&mut self, id: u64, result: Result<Response, Failure>) -> Result<(), ConnectionError> {
        self.connection.send(&FromAgent::Reply { id, result })
    }

    fn create(&mut self, call: u64, create: &CreateContainer) -> Result<Answer, Error> {
        let id = &create.container;
        if self.containers.contains_key(id) {
            return Err(Error::Exists(format!("container {id}")));
        }
        let mut plan = ContainerPlan::new(create)?;
        check_terminal(&plan.process, &create.stdio)?;
        self.mount_files()?;
        let special = self.make_special(id, &create.special_files)?;
        plan.provide_devices()?;
        let mut namespaces = UserNamespaces::new(self.files()?);
        plan.mounts.iter_mut().try_for_each(|mount| mount.map_ids(&mut namespaces))?;
        let (child, host) = processes::make_stdio(&create.stdio, &self.null)?;
        let nodes = equip_users(&plan, &child)?;
        let cgroup = Cgroup::make(self.files()?.cgroups().directory(), &plan.cgroup, &plan.settings)?;
        let spawned =
            self.shared(&plan).and_then(|shared| container::spawn_init(self.guest()?, &plan, &shared, &cgroup, &child));
        let spawned = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                // Nothing was born in it, so it can go.
                let _ = cgroup.remove();
                return Err(error);
            }
        };
        let pid = spawned.pid;
        let given = self.equip(&spawned, &plan, &create.interfaces);
        let mut container = Container {
            namespaces: plan.namespaces,
            init: Some(pid),
            cgroup,
            freezing: Vec::new(),
            emptying: None,
            seccomp: plan.seccomp,
            personality: plan.personality,
            affinity: plan.process.exec_affinity.clone(),
            special,
            name_server: None,
            id_maps: plan.id_maps.clone(),
            _nodes: nodes,
        };
        let watched = container.cgroup.memory_events().map_or(Ok(()), |events| {
            self.watch(events, Source::Memory(pid.cast_unsigned()), EventFlags::PRI | EventFlags::ET)
        });
        let name_server = create.name_server.map_or(Ok(None), |port| {
            let (cgroup, process) = (container.cgroup.directory(), self.in_network(&plan.joins, &spawned)?);
            self.make_name_server(process.as_fd(), cgroup, port).map(Some)
        });
        let served = name_server.map(|server| container.name_server = server);
        self.containers.insert(id.clone(), container);
        let name = ProcessId { container: id.clone(), exec: None };
        self.adopt(call, name, spawned, host, &plan.process);
        if let Err(error) = watched.and(served).and(given) {
            self.give_up(pid, error);
        }
        Ok(Answer::Later)
    }

    /// Namespaces of other containers that this one is to be in.
    fn shared(&self, plan: &ContainerPlan) -> Result<Vec<Shared<'_>>, Error> {
        let of = |join: &Join| Ok((join.kind, self.init_of(&join.container)?.pidfd.as_fd()));
        plan.joins.iter().map(of).collect()
    }

    /// A process in the new container's network namespace. One that joins another's may not be there yet.
    fn in_network(&self, joins: &[Join], spawned: &Spawned) -> Result<OwnedFd, Error> {
        let join = joins.iter().find(|join| join.kind == ThreadNameSpaceType::NETWORK);
        let process = match join {
            Some(join) => &self.init_of(&join.container)?.pidfd,
            None => &spawned.pidfd,
        };
        duplicate(process)
    }

    /// The new process waits for its users, without which it can do nothing, and for its interfaces: what comes next may name
    /// them, as kernel parameters do.
    fn equip(&self, spawned: &Spawned, plan: &ContainerPlan, interfaces: &[AttachedInterface]) -> Result<(), Error> {
        if !plan.awaits_agent {
            return Ok(());
        }
        if let Some(maps) = plan.id_maps.as_ref().filter(|_| plan.namespaces.owns(ThreadNameSpaceType::USER)) {
            maps.give(self.files()?.proc(), spawned.pid, "the user namespace")?;
        }
        network::give(self.guest()?, (spawned.pid, spawned.pidfd.as_fd()), interfaces)?;
        spawned.channel.release().map_err(Error::at("let the new process go on"))
    }

    fn add_interface(
        &mut self,
        id: &str,
        interface: &AttachedInterface,
        name_server: Option<u32>,
    ) -> Result<Answer, Error> {
        let process = self.init_of(id)?.pidfd.as_fd();
        let container = self.container(id)?;
        let pid = container.init.ok_or_else(|| Error::NotFound(format!("container {id}")))?;
        network::give(self.guest()?, (pid, process), std::slice::from_ref(interface))?;
        if let (Some(port), None) = (name_server, &container.name_server) {
            let (process, cgroup) = (duplicate(process)?, duplicate(container.cgroup.directory())?);
            let server = self.make_name_server(process.as_fd(), cgroup.as_fd(), port)?;
            self.containers.entry(id.to_owned()).and_modify(|container| container.name_server = Some(server));
        }
        Ok(Answer::Now(Response::Done))
    }

    fn remove_interface(&self, id: &str, name: &str) -> Result<Answer, Error> {
        network::take(self.guest()?, self.init_of(id)?.pidfd.as_fd(), name)?;
        Ok(Answer::Now(Response::Done))
    }

    fn exec(&mut self, call: u64, exec: &Exec) -> Result<Answer, Error> {
        let plan = ProcessPlan::new(&exec.spec)?;
        check_terminal(&plan, &exec.stdio)?;
        if self.find(&exec.process).is_ok() {
            return Err(Error::Exists(name(&exec.process)));
        }
        let container = self.container(&exec.process.container)?;
        let init = self.init_of(&exec.process.container)?;
        if matches!(init.phase, Phase::SettingUp { .. }) {
            let container = format!("container {}", exec.process.container);
            return Err(Error::WrongState { container, state: "being created" });
        }
        let (child, host) = processes::make_stdio(&exec.stdio, &self.null)?;
        if let Some(maps) = &container.id_maps {
            child.give(maps.uid(plan.uid)?)?;
        }
        let init = init.pidfd.as_fd();
        let below = exec.cgroup.as_deref().map(|path| container.cgroup.below(path)).transpose()?;
        let spawn = |cgroup| container::spawn_exec(self.guest()?, container, init, cgroup, &plan, &child);
        let spawned = match spawn(below.as_ref().map_or(container.cgroup.directory(), AsFd::as_fd)) {
            // A cgroup that hands controllers on may hold no process: the first one has found another place then.
            Err(Error::System { source: Errno::BUSY, .. }) => match &exec.cgroup {
                None => spawn(container.cgroup.of_process(self.files()?.proc(), container.init)?.as_fd())?,
                Some(path) => return Err(cgroup::not_added(path)(Errno::BUSY)),
            },
            spawned => spawned?,
        };
        self.adopt(call, exec.process.clone(), spawned, host, &plan);
        Ok(Answer::Later)
    }

    /// Takes on a process that was just made. From here on its end answers the call, whatever fails.
    fn adopt(&mut self, call: u64, id: ProcessId, spawned: Spawned, mut host: HostStdio, plan: &ProcessPlan) {
        let pid = spawned.pid;
        let source = Source::Report(pid.cast_unsigned());
        let watched = self.watch(spawned.channel.as_fd(), source, EventFlags::IN);
        self.processes.insert(pid, Process::new(id, spawned, host.terminal.take(), plan.scheduling.is_usual(), call));
        if let Err(error) = watched.and_then(|()| self.connect(pid, host, plan)) {
            self.give_up(pid, error);
        }
    }

    /// Connects a process's streams, and sets what only the agent can set of it.
    fn connect(&mut self, pid: i32, host: HostStdio, plan: &ProcessPlan) -> Result<(), Error> {
        for pump in host.inputs {
            self.add_stream(pump, pid)?;
        }
        for pump in host.outputs {
            self.add_output(pump, pid)?;
        }
        if let Some(score) = plan.oom_score_adj {
            let file = format!("{pid}/oom_score_adj");
            machine::write_in(self.files()?.proc(), &file, score.to_string().as_bytes())
                .map_err(Error::at(format!("set oom_score_adj to {score}")))?;
        }
        Ok(())
    }

    fn start(&mut self, call: u64, id: &str) -> Result<Answer, Error> {
        self.init_of(id)?;
        self.cpus.hurry();
        let process = self.processes.values_mut().find(|process| is_init(process, id));
        let process = process.ok_or_else(|| Error::NotFound(format!("container {id}")))?;
        let state = match process.phase {
            Phase::Created => "created",
            Phase::SettingUp { .. } => "being created",
            Phase::Starting { .. } | Phase::Running => "running",
        };
        let channel = process.channel.as_ref().filter(|_| matches!(process.phase, Phase::Created));
        let channel = channel.ok_or_else(|| Error::WrongState { container: format!("container {id}"), state })?;
        channel.release().map_err(Error::at(format!("start container {id}")))?;
        process.phase = Phase::Starting { call };
        Ok(Answer::Later)
    }

    fn signal(&mut self, process: &ProcessId, signal: i32, all: bool) -> Result<Answer, Error> {
        let step = || format!("send signal {signal} to {}", name(process));
        if signal == 0 {
            // Only whether there is somebody is asked.
            return self.find(process).map(|_| Answer::Now(Response::Done));
        }
        let number = Signal::from_named_raw(signal).or_else(|| real_time(signal));
        let number = number.ok_or_else(|| Error::at(step())(Errno::INVAL))?;
        if all {
            let container = self.container(&process.container)?;
            signal_all(container, number).map_err(Error::at(step()))?;
            return Ok(Answer::Now(Response::Done));
        }
        let target = self.find(process)?.1;
        // The kernel spares the first process of a pid namespace what it does not handle, and one that waits for its start handles nothing.
        let ends = matches!(target.phase, Phase::Created) && ends_by_default(number);
        let number = if ends { Signal::KILL } else { number };
        rustix::process::pidfd_send_signal(&target.pidfd, number).map_err(Error::at(step()))?;
        if number == Signal::KILL && process.exec.is_none() {
            // Nothing outlives the first process. Were the others left to its end, it would have to come to a CPU among them first.
            self.container(&process.container)?.cgroup.kill().map_err(Error::at(step()))?;
        }
        Ok(Answer::Now(Response::Done))
    }

    fn resize(&mut self, process: &ProcessId, size: TerminalSize) -> Result<Answer, Error> {
        let terminal = self.find(process)?.1.outputs.first().and_then(|id| self.streams.get(id));
        let terminal = terminal.filter(|stream| stream.sibling.is_some());
        let terminal = terminal.ok_or_else(|| Error::NotFound(format!("terminal of {}", name(process))))?;
        terminal::resize(terminal.pump.from(), size)
            .map_err(Error::at(format!("resize the terminal of {}", name(process))))?;
        Ok(Answer::Now(Response::Done))
    }

    fn delete(&mut self, id: &str) -> Result<Answer, Error> {
        let container = self.container(id)?;
        if container.init.is_some() {
            return Err(Error::WrongState { container: format!("container {id}"), state: "not stopped" });
        }
        self.containers.remove(id);
        Ok(Answer::Now(Response::Done))
    }

    pub(crate) fn guest(&self) -> Result<Guest<'_>, Error> {
        let files = self.files()?;
        Ok(Guest { proc: files.proc(), agent: self.myself.as_fd() })
    }

    pub(crate) fn files(&self) -> Result<&machine::FileSystems, Error> {
        self.files.as_ref().ok_or_else(|| Error::at("use the guest's file systems")(Errno::NODEV))
    }

    pub(crate) fn container(&self, id: &str) -> Result<&Container, Error> {
        self.containers.get(id).ok_or_else(|| Error::NotFound(format!("container {id}")))
    }

    /// The first process of a container that has one and is past its creation.
    pub(crate) fn init_of(&self, id: &str) -> Result<&Process, Error> {
        let init = self.container(id)?.init.and_then(|pid| self.processes.get(&pid));
        let init = init.filter(|process| process.status.is_none());
        init.ok_or_else(|| Error::WrongState { container: format!("container {id}"), state: "stopped" })
    }

    fn find(&self, id: &ProcessId) -> Result<(i32, &Process), Error> {
        let mut processes = self.processes.iter().filter(|(_, process)| process.id == *id && process.status.is_none());
        processes.next().map(|(pid, process)| (*pid, process)).ok_or_else(|| Error::NotFound(name(id)))
    }
}

/// What only the agent can do for a container with a user namespace: streams and devices that belong to its users, and what it
/// has to see of the guest.
fn equip_users(plan: &ContainerPlan, stdio: &ChildStdio) -> Result<Option<Nodes>, Error> {
    let Some(maps) = &plan.id_maps else { return Ok(None) };
    machine::show_kernel_files()?;
    stdio.give(maps.uid(plan.process.uid)?)?;
    plan.devices.as_deref().map(|devices| Nodes::make(&plan.container, devices, maps)).transpose()
}

/// A stopped container has no processes any more.
fn signal_all(container: &Container, signal: Signal) -> rustix::io::Result<()> {
    if container.init.is_none() {
        return Err(Errno::SRCH);
    }
    if signal == Signal::KILL {
        return container.cgroup.kill();
    }
    for pid in container.cgroup.processes()?.into_iter().filter_map(Pid::from_raw) {
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a program that does not handle the signal is ended by it.
fn ends_by_default(signal: Signal) -> bool {
    let spared = [
        Signal::CHILD,
        Signal::CONT,
        Signal::URG,
        Signal::WINCH,
        Signal::STOP,
        Signal::TSTP,
        Signal::TTIN,
        Signal::TTOU,
    ];
    !spared.contains(&signal)
}

fn is_init(process: &Process, container: &str) -> bool {
    process.id.container == container && process.id.exec.is_none()
}

fn check_terminal(process: &ProcessPlan, stdio: &agent::Stdio) -> Result<(), Error> {
    match process.terminal == matches!(stdio, agent::Stdio::Terminal { .. }) {
        true => Ok(()),
        false => Err(Error::invalid("process.terminal", "does not fit the streams that were given")),
    }
}

fn real_time(signal: i32) -> Option<Signal> {
    let known = (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal);
    // SAFETY: the number is one of the real-time signals, which the C library leaves to programs.
    known.then(|| unsafe { Signal::from_raw_unchecked(signal) })
}

/// How messages name a process.
pub(crate) fn name(id: &ProcessId) -> String {
    match &id.exec {
        None => format!("container {}", id.container),
        Some(exec) => format!("exec {exec} of container {}", id.container),
    }
}
