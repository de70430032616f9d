//! Further processes of a container, and the registration of new processes.

use std::os::fd::AsFd;

use agent::{Exec, ProcessId};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::Agent;
use super::requests::Answer;
use crate::container::process::ProcessPlan;
use crate::container::{cgroup, spawn};
use crate::error::Error;
use crate::events::Source;
use crate::processes::stdio::{self, HostStdio};
use crate::processes::{Phase, Process, Spawned, display_name};
use crate::sys::files;

impl Agent {
    /// Makes a further process. The reply follows when its program runs.
    pub(super) fn exec(&mut self, call: u64, exec: &Exec) -> Result<Answer, Error> {
        let plan = ProcessPlan::new(&exec.spec)?;
        check_terminal(&plan, &exec.stdio)?;
        if self.process(&exec.process).is_ok() {
            return Err(Error::Exists(display_name(&exec.process)));
        }
        let container = self.container(&exec.process.container)?;
        let init = self.init_of(&exec.process.container)?;
        if matches!(init.phase, Phase::SettingUp { .. }) {
            let container = format!("container {}", exec.process.container);
            return Err(Error::WrongState { container, state: "being created" });
        }
        let (child, host) = stdio::make(&exec.stdio, &self.host, &self.null)?;
        if let Some(maps) = &container.id_maps {
            child.set_owner(maps.uid(plan.uid)?)?;
        }
        let init = init.pidfd.as_fd();
        let below = exec.cgroup.as_deref().map(|path| container.cgroup.open_below(path)).transpose()?;
        let spawn = |cgroup| spawn::spawn_exec(self.guest_fds()?, container, init, cgroup, &plan, &child);
        let spawned = match spawn(below.as_ref().map_or(container.cgroup.directory(), AsFd::as_fd)) {
            // A cgroup that enables controllers for its children may hold no process. The first process has moved to a
            // child then.
            Err(Error::System { source: Errno::BUSY, .. }) => match &exec.cgroup {
                None => spawn(container.cgroup.open_of_process(self.files()?.proc(), container.init)?.as_fd())?,
                Some(path) => return Err(cgroup::add_error(path)(Errno::BUSY)),
            },
            spawned => spawned?,
        };
        self.register(call, exec.process.clone(), spawned, host, &plan);
        Ok(Answer::Later)
    }

    /// Registers a process that was just made. From now on the end of the process answers the call, whatever fails.
    pub(super) fn register(
        &mut self,
        call: u64,
        id: ProcessId,
        spawned: Spawned,
        mut host: HostStdio,
        plan: &ProcessPlan,
    ) {
        let pid = spawned.pid;
        let source = Source::Report(pid.cast_unsigned());
        let watched = self.poll.watch(&spawned.channel, source, EventFlags::IN);
        let normal_scheduling = plan.scheduling.is_normal();
        let process = Process::new(id, spawned, host.terminal.take(), normal_scheduling, call);
        self.processes.insert(pid, process);
        if let Err(error) = watched.and_then(|()| self.connect(pid, host, plan)) {
            self.abort(pid, error);
        }
    }

    /// Connects a process's streams, and sets its `oom_score_adj`, which needs the agent's privileges.
    fn connect(&mut self, pid: i32, host: HostStdio, plan: &ProcessPlan) -> Result<(), Error> {
        for pump in host.inputs {
            self.streams.add(&self.poll, pump, Some(pid))?;
        }
        for pump in host.outputs {
            self.add_output(pump, pid)?;
        }
        if let Some(score) = plan.oom_score_adj {
            let file = format!("{pid}/oom_score_adj");
            files::write_at(self.files()?.proc(), &file, score.to_string().as_bytes())
                .map_err(Error::at(format!("set oom_score_adj to {score}")))?;
        }
        Ok(())
    }
}

/// Refuses streams that do not match `process.terminal`.
pub(super) fn check_terminal(process: &ProcessPlan, stdio: &agent::Stdio) -> Result<(), Error> {
    match process.terminal == matches!(stdio, agent::Stdio::Terminal { .. }) {
        true => Ok(()),
        false => Err(Error::invalid("process.terminal", "does not match the streams of the request")),
    }
}
