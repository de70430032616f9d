//! The helper of a sandbox: a process outside the VMM's jail that does what the jail forbids ([`vmm::helper`]). It ends with the VMM.

mod command;
mod node_maker;
mod tasks;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;
use vmm::helper::connection;

use super::record::Record;
use super::store::Store;
use super::vmm_process::{VmmError, open_log};
use crate::host::cgroup::CgroupError;
use crate::host::open_fds::close_all_on_exec;

/// Name of the command that runs the helper. Its standard input is the connection for tasks, its standard output that for device
/// nodes.
pub(crate) const COMMAND: &str = "sandbox-helper";

/// Why there is no helper, or why it has ended.
#[derive(Debug, Error)]
pub(crate) enum HelperError {
    #[error("start the sandbox's helper process: {step}")]
    Start { step: &'static str, source: io::Error },
    #[error("start the sandbox's helper process")]
    Log(#[from] VmmError),
    #[error("move the sandbox's helper process into the cgroup")]
    Cgroup(#[from] CgroupError),
    #[error("{step}")]
    Serve { step: &'static str, source: io::Error },
}

/// The VMM's ends of the connections to its helper.
#[derive(Debug)]
pub(crate) struct HelperConnections {
    pub(crate) tasks: OwnedFd,
    pub(crate) node_maker: OwnedFd,
}

/// Starts the helper of the sandbox whose record is `record`, in its cgroup, so that the host counts an OOM kill there. Where the VMM
/// has no cgroup of its own, the helper has none either. It ends when the VMM, or this process, closes the connections.
///
/// # Errors
/// A step failed. No process is left, once the connections are closed.
pub(crate) fn start(
    program: &Path,
    store: &Store,
    record: &Record,
    dir: &Path,
) -> Result<HelperConnections, HelperError> {
    let failed = |step| move |source| HelperError::Start { step, source };
    let (tasks, helper_tasks) = connection().map_err(failed("make a connection"))?;
    let (node_maker, helper_node_maker) = connection().map_err(failed("make a connection"))?;
    #[cfg(feature = "unjailed-bench")]
    if crate::host::unjailed::is_chosen() {
        // Without a jail there is nothing that the VMM could not do itself. Its requests get no answer while this process runs.
        std::mem::forget((helper_tasks, helper_node_maker));
        return Ok(HelperConnections { tasks, node_maker });
    }
    let mut command = Command::new(program);
    command.arg("--root").arg(store.root()).args([COMMAND, &record.id]).current_dir("/").env_clear();
    command.stdin(helper_tasks).stdout(helper_node_maker).stderr(open_log(dir)?);
    let prepare = || {
        nix::unistd::setsid()?;
        Ok(close_all_on_exec()?)
    };
    // SAFETY: the closure makes system calls only and takes no lock, so it is sound between `fork` and `execve`.
    unsafe { command.pre_exec(prepare) };
    let helper = command.spawn().map_err(failed("execute it"))?;
    record.cgroup.add(helper.id().cast_signed())?;
    Ok(HelperConnections { tasks, node_maker })
}

/// Serves the requests of the VMM until it ends.
///
/// # Errors
/// A connection failed, or the VMM sent something else than a request.
pub(crate) fn serve(root: PathBuf, id: &str) -> Result<(), HelperError> {
    let failed = |step| move |source| HelperError::Serve { step, source };
    let duplicate = |fd: BorrowedFd| fd.try_clone_to_owned().map_err(failed("duplicate a connection"));
    let tasks = duplicate(io::stdin().as_fd())?;
    let node_maker = duplicate(io::stdout().as_fd())?;
    let nodes = std::thread::Builder::new().name("nodes".to_owned());
    nodes.spawn(move || node_maker::serve(&node_maker)).map_err(failed("start a thread"))?;
    tasks::Tasks::new(root, id.to_owned()).serve(&tasks).map_err(failed("serve the VMM's tasks"))
}
