//! The steps of a new process until it executes its program.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::ThreadNameSpaceType;

use crate::container::hooks::StartHooks;
use crate::container::namespaces::{Namespaces, user};
use crate::container::plan::ContainerPlan;
use crate::container::process::affinity::Affinity;
use crate::container::process::seccomp::Filter;
use crate::container::process::terminal::Terminal;
use crate::container::process::{ProcessPlan, program};
use crate::container::rootfs::devices;
use crate::error::Error;
use crate::machine::priority;
use crate::processes::channel::{Channel, Report};
use crate::processes::stdio::{self, ChildStdio};
use crate::sys::{descriptors, mount, process};

/// What a new process becomes.
pub(crate) enum Role<'a> {
    /// The first process of a new container, which is in those of its namespaces already that are others'.
    Init(&'a ContainerPlan),
    /// A further one, in the namespaces of the process that `container` is a pidfd of.
    Exec {
        /// The container's first process.
        container: BorrowedFd<'a>,
        /// Which namespaces the container has.
        namespaces: Namespaces,
        /// What to run.
        process: &'a ProcessPlan,
        /// The container's filter of system calls.
        seccomp: Option<&'a Filter>,
        /// The CPUs it may run on.
        affinity: Option<&'a Affinity>,
        /// The container's execution domain.
        personality: Option<u64>,
    },
}

impl Role<'_> {
    fn process(&self) -> &ProcessPlan {
        match self {
            Role::Init(plan) => &plan.process,
            Role::Exec { process, .. } => process,
        }
    }

    fn start_hooks(&self) -> Option<&StartHooks> {
        match self {
            Role::Init(plan) => plan.start_hooks.as_ref(),
            Role::Exec { .. } => None,
        }
    }

    fn seccomp(&self) -> Option<&Filter> {
        match self {
            Role::Init(plan) => plan.seccomp.as_ref(),
            Role::Exec { seccomp, .. } => *seccomp,
        }
    }

    fn personality(&self) -> Option<u64> {
        match self {
            Role::Init(plan) => plan.personality,
            Role::Exec { personality, .. } => *personality,
        }
    }

    fn awaits_agent(&self) -> bool {
        matches!(self, Role::Init(plan) if plan.awaits_agent)
    }
}

/// Goes all the way; what fails is reported and ends the process.
pub(crate) fn run(role: &Role<'_>, stdio: &ChildStdio, channel: &Channel, proc: BorrowedFd<'_>) -> ! {
    let second = priority::raise_for_new_process();
    if role.awaits_agent() && !channel.wait() {
        // The agent has given up on this process, and says why itself.
        process::exit();
    }
    match second.and_then(|()| prepare(role, stdio, channel.as_fd(), proc)) {
        Ok(kept) => {
            let Err(error) = kept.execute(role);
            kept.channel.report(&Report::Failed(error.into()));
        }
        Err(error) => channel.report(&Report::Failed(error.into())),
    }
    process::exit()
}

/// All descriptors that a process still has once it is in its container, besides its standard streams.
struct Kept {
    channel: Channel,
    root: OwnedFd,
    terminal: Option<OwnedFd>,
}

/// Everything up to the point where the process has only the descriptors it may have.
fn prepare(role: &Role<'_>, stdio: &ChildStdio, channel: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> Result<Kept, Error> {
    rustix::process::setsid().map_err(Error::at("make a session"))?;
    let (root, terminal) = match role {
        Role::Init(plan) => set_up_container(plan, stdio, proc)?,
        Role::Exec { container, namespaces, process, affinity, .. } => {
            affinity.map_or(Ok(()), Affinity::apply)?;
            join_container(*container, *namespaces, process, stdio)?
        }
    };
    if let Some(personality) = role.personality() {
        process::set_personality(personality).map_err(Error::at("set personality"))?;
    }
    let streams = match (stdio, &terminal) {
        (ChildStdio::Streams(streams), _) => streams.each_ref().map(AsFd::as_fd),
        (ChildStdio::Terminal { .. }, Some(terminal)) => [terminal.slave.as_fd(); 3],
        (ChildStdio::Terminal { .. }, None) => {
            return Err(Error::invalid("process.terminal", "no terminal was opened"));
        }
    };
    for stream in streams {
        stdio::set_stream_owner(stream, role.process().uid).map_err(Error::at("hand a standard stream to the user"))?;
    }
    let master = terminal.as_ref().map(|terminal| terminal.master.as_fd());
    let kept = descriptors::set_open_descriptors(streams, &[Some(channel), Some(root.as_fd()), master]);
    // Their numbers are closed, and some of them open again as something else.
    std::mem::forget((root, terminal));
    match kept.map_err(Error::at("close descriptors"))? {
        [Some(channel), Some(root), terminal] => Ok(Kept { channel: Channel::from_fd(channel), root, terminal }),
        _ => Err(Error::EndedEarly { step: "close descriptors".into() }),
    }
}

impl Kept {
    /// Becomes the process, says so, waits to be let go on, and executes the program.
    ///
    /// As runc does: without `no_new_privs`, a filter of system calls takes privileges to install, so that is done
    /// before they are given up; otherwise last, so that as few calls as possible have to get past it.
    fn execute(&self, role: &Role<'_>) -> Result<Infallible, Error> {
        let (process, seccomp) = (role.process(), role.seccomp());
        let (early, late) = if process.no_new_privileges { (None, seccomp) } else { (seccomp, None) };
        let env = process.become_it(self.root.as_fd(), early)?;
        let program = program::find(&process.args[0], &env)?;
        self.channel.report(&Report::Ready { terminal: self.terminal.as_ref().map(AsRawFd::as_raw_fd) });
        if !self.channel.wait() {
            // The agent let go of this process: nobody will hear of it.
            return Err(Error::EndedEarly { step: "start".into() });
        }
        process::reset_signals_and_timers().map_err(Error::at("reset signals and timers"))?;
        late.map_or(Ok(()), Filter::install)?;
        role.start_hooks().map_or(Ok(()), |hooks| hooks.run(&env))?;
        Err(program::not_executed(&program, process::execute(&program, &process.args, &env)))
    }
}

/// Makes the container around the caller. Gives its root, and the terminal if there is one.
fn set_up_container(
    plan: &ContainerPlan,
    stdio: &ChildStdio,
    proc: BorrowedFd<'_>,
) -> Result<(OwnedFd, Option<Terminal>), Error> {
    if plan.id_maps.is_some() {
        user::become_root()?;
    }
    plan.namespaces.finish()?;
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(Error::at(format!("set host name {name}")))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).map_err(Error::at(format!("set domain name {name}")))?;
    }
    let root = enter_root(plan, matches!(stdio, ChildStdio::Terminal { .. }))?;
    for sysctl in &plan.sysctls {
        sysctl.set(proc)?;
    }
    let terminal = open_terminal(root.as_fd(), stdio, &plan.process)?;
    if let Some(terminal) = &terminal {
        terminal.mount_console(root.as_fd())?;
    }
    Ok((root, terminal))
}

/// What is mounted is listed in the order in which it was made, so that is the specification's. Sources of mounts are the
/// guest's own paths, so those go last. The place of a terminal is made while `/dev` can still be written.
fn enter_root(plan: &ContainerPlan, has_terminal: bool) -> Result<OwnedFd, Error> {
    let root = plan.rootfs.attach()?;
    let mut filled = Vec::new();
    for mount in &plan.mounts {
        filled.extend(mount.mount(root.as_fd())?);
    }
    match (&plan.devices, plan.id_maps.is_some()) {
        (Some(devices), true) => devices::mount(root.as_fd(), &plan.container, devices)?,
        (Some(devices), false) => devices::make(root.as_fd(), devices)?,
        (None, _) => {}
    }
    if has_terminal {
        Terminal::make_console(root.as_fd())?;
    }
    plan.process.make_cwd(root.as_fd())?;
    plan.rootfs.restrict(root.as_fd())?;
    let close =
        |mount: &OwnedFd| mount::make_read_only(mount.as_fd(), false).map_err(Error::at("make a mount read-only"));
    filled.iter().try_for_each(close)?;
    let root = plan.rootfs.enter(&root)?;
    plan.rootfs.finish(root.as_fd())?;
    Ok(root)
}

/// Joins a container. Its pid namespace the caller was born in already.
fn join_container(
    container: BorrowedFd<'_>,
    namespaces: Namespaces,
    process: &ProcessPlan,
    stdio: &ChildStdio,
) -> Result<(OwnedFd, Option<Terminal>), Error> {
    rustix::thread::move_into_thread_name_spaces(container, namespaces.join_flags())
        .map_err(Error::at("join the container's namespaces"))?;
    if namespaces.has(ThreadNameSpaceType::USER) {
        user::become_root()?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).map_err(Error::at("open the container's root"))?;
    let terminal = open_terminal(root.as_fd(), stdio, process)?;
    Ok((root, terminal))
}

fn open_terminal(root: BorrowedFd<'_>, stdio: &ChildStdio, process: &ProcessPlan) -> Result<Option<Terminal>, Error> {
    let ChildStdio::Terminal { size, bare_lines } = *stdio else { return Ok(None) };
    let terminal = Terminal::open(root, size.or(process.console_size), bare_lines)?;
    terminal.control()?;
    Ok(Some(terminal))
}
