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

/// The role of a new process.
pub(crate) enum Role<'a> {
    /// The first process of a new container. It has already joined the namespaces of other containers.
    Init(&'a ContainerPlan),
    /// A further process, which joins the namespaces of an existing one.
    Exec {
        /// A pidfd of the container's first process.
        container: BorrowedFd<'a>,
        /// The container's namespaces.
        namespaces: Namespaces,
        /// The program and its attributes.
        process: &'a ProcessPlan,
        /// The container's system call filter.
        seccomp: Option<&'a Filter>,
        /// The CPUs that it may run on.
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

/// Sets the process up and executes its program. On failure it reports the error and ends the process. `proc` is the
/// guest's `/proc`.
pub(crate) fn run(role: &Role<'_>, stdio: &ChildStdio, channel: &Channel, proc: BorrowedFd<'_>) -> ! {
    let raised = priority::raise_for_new_process();
    if role.awaits_agent() && !channel.wait() {
        // The agent has aborted this process, and knows the reason.
        process::exit();
    }
    match raised.and_then(|()| prepare(role, stdio, channel.as_fd(), proc)) {
        Ok(fds) => {
            let Err(error) = fds.execute(role);
            fds.channel.report(&Report::Failed(error.into()));
        }
        Err(error) => channel.report(&Report::Failed(error.into())),
    }
    process::exit()
}

/// The descriptors that a process still has when it is in its container, besides its standard streams.
struct ChildFds {
    channel: Channel,
    root: OwnedFd,
    terminal: Option<OwnedFd>,
}

/// Sets the process up until all other descriptors are closed.
fn prepare(
    role: &Role<'_>,
    stdio: &ChildStdio,
    channel: BorrowedFd<'_>,
    proc: BorrowedFd<'_>,
) -> Result<ChildFds, Error> {
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
        stdio::set_stream_owner(stream, role.process().uid)
            .map_err(Error::at("change the owner of a standard stream"))?;
    }
    let master = terminal.as_ref().map(|terminal| terminal.master.as_fd());
    let fds = descriptors::set_open_descriptors(streams, &[Some(channel), Some(root.as_fd()), master]);
    // Their numbers are closed, and some are in use for other files.
    std::mem::forget((root, terminal));
    match fds.map_err(Error::at("close descriptors"))? {
        [Some(channel), Some(root), terminal] => Ok(ChildFds { channel: Channel::from_fd(channel), root, terminal }),
        _ => Err(Error::EndedEarly { step: "close descriptors".into() }),
    }
}

impl ChildFds {
    /// Assumes the attributes of the process, reports that, waits for the release, and executes the program.
    ///
    /// The filter is installed as in runc: without `no_new_privs` the installation needs privileges, so it is done
    /// before they are dropped. Otherwise it is done last, so that the filter has to allow as few system calls as
    /// possible.
    fn execute(&self, role: &Role<'_>) -> Result<Infallible, Error> {
        let (process, seccomp) = (role.process(), role.seccomp());
        let (early, late) = if process.no_new_privileges { (None, seccomp) } else { (seccomp, None) };
        let env = process.assume(self.root.as_fd(), early)?;
        let program = program::find(&process.args[0], &env)?;
        self.channel.report(&Report::Ready { terminal: self.terminal.as_ref().map(AsRawFd::as_raw_fd) });
        if !self.channel.wait() {
            // The agent closed its end and ignores this failure.
            return Err(Error::EndedEarly { step: "start".into() });
        }
        process::reset_signals_and_timers().map_err(Error::at("reset signals and timers"))?;
        late.map_or(Ok(()), Filter::install)?;
        role.start_hooks().map_or(Ok(()), |hooks| hooks.run(&env))?;
        Err(program::exec_error(&program, process::execute(&program, &process.args, &env)))
    }
}

/// Sets up the container around the caller. Returns the container's root, and the terminal if there is one.
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

/// Enters the container's root file system. The order of the mounts is the specification's, because tools list mounts
/// in the order of their creation. Sources of mounts are paths of the guest, so the guest's root is left last. The
/// mount point of the terminal is made while `/dev` is still writable.
fn enter_root(plan: &ContainerPlan, has_terminal: bool) -> Result<OwnedFd, Error> {
    let root = plan.rootfs.attach()?;
    let mut read_only_later = Vec::new();
    for mount in &plan.mounts {
        read_only_later.extend(mount.mount(root.as_fd())?);
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
    let make_read_only =
        |mount: &OwnedFd| mount::make_read_only(mount.as_fd(), false).map_err(Error::at("make a mount read-only"));
    read_only_later.iter().try_for_each(make_read_only)?;
    let root = plan.rootfs.enter(&root)?;
    plan.rootfs.finish(root.as_fd())?;
    Ok(root)
}

/// Joins a container. The caller was made in its pid namespace already.
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
    let ChildStdio::Terminal { size, no_carriage_return } = *stdio else { return Ok(None) };
    let terminal = Terminal::open(root, size.or(process.console_size), no_carriage_return)?;
    terminal.set_controlling()?;
    Ok(Some(terminal))
}
