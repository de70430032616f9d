//! Makes a template: boots a machine without containers, and has its VMM save it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;
use vmm::config::{SandboxConfig, TemplateUse};
use vmm::control::{Client, ClientError, Request};
use vmm::helper::connection;
use vmm::machine::template::{TemplateError, seal};

use super::store::{TemplateStore, TemplateStoreError, name};
use crate::base::config::Config;
use crate::base::error_chain::chain;
use crate::base::log::Log;
use crate::host::caller::Caller;
use crate::host::network_namespace::NetworkNamespace;
use crate::host::open_fds::close_all_on_exec;
use crate::host::user_namespace::{IdMaps, RootlessError};
use crate::sandbox::helper::HelperConnections;
use crate::sandbox::machine_files::{MachineFiles, MachineFilesError};
use crate::sandbox::vmm_process::{Ending, VmmError, VmmNamespaces, VmmOptions, spawn};
use crate::spec::sizing::host_cpus;

/// Memory of a template's machine in MiB. Every machine that has more gets the rest after its start, so this is little more than what
/// the guest's kernel and agent need.
pub(crate) const MEMORY_MIB: u64 = 128;

/// Number of network devices of a template's machine: those that a start with a new network namespace asks for.
pub(crate) const NETWORK_SLOTS: u8 = 2;

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// Niceness of a process that makes a template in the background.
const BACKGROUND_NICENESS: i32 = 10;

/// Why a template cannot be made.
#[derive(Debug, Error)]
pub(crate) enum MakeError {
    #[error(transparent)]
    Store(#[from] TemplateStoreError),
    #[error("create {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Maps(#[from] RootlessError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    Files(#[from] MachineFilesError),
    #[error("configure the machine")]
    Configure(#[from] ClientError),
    #[error(transparent)]
    Seal(#[from] TemplateError),
    #[error("boot and save the machine: vmrt-vmm ended with {0}")]
    NotSaved(Ending),
}

/// A directory for the files of the VMM, which is removed with this.
struct WorkDir(PathBuf);

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes the template for `config`, unless it exists, and returns its path. While another process makes a template, waits for it if
/// `wait` is set, and otherwise returns `None`.
///
/// # Errors
/// A step failed. No template is left.
pub(crate) fn make(config: &Config, caller: Caller, wait: bool, log: &Log) -> Result<Option<PathBuf>, MakeError> {
    let store = TemplateStore::new(config);
    let name = name(config)?;
    let Some(_lock) = store.lock(wait)? else { return Ok(None) };
    if store.open(&name).is_ok_and(|found| found.is_some()) {
        return Ok(Some(store.path(&name)));
    }
    let dir = work_dir(&store, &name)?;
    let path = dir.0.join("template");
    let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&path);
    let file = created.map_err(|source| MakeError::File { path: path.clone(), source })?;
    run(config, caller, &dir.0, &file, log)?;
    let file_error = |source| MakeError::File { path: path.clone(), source };
    seal(&file)?;
    // Without this, a host that loses its power could keep a template whose memory was not written.
    file.sync_all().map_err(file_error)?;
    Ok(Some(store.publish(&path, &name)?))
}

/// Makes the template for `config` for later starts, unless it exists or another process makes one. Then removes the least used
/// templates. If it cannot be made, the cause is recorded.
///
/// # Errors
/// A step failed. No template is left.
pub(crate) fn make_for_later(config: &Config, caller: Caller, log: &Log) -> Result<(), MakeError> {
    let store = TemplateStore::new(config);
    if let Err(error) = make(config, caller, false, log) {
        store.record_failure(&name(config)?, &chain(&error));
        return Err(error);
    }
    store.prune(config.template_max_mib.saturating_mul(MIB))?;
    Ok(())
}

/// A new directory in the place of one that a killed process has left.
fn work_dir(store: &TemplateStore, name: &str) -> Result<WorkDir, MakeError> {
    let path = store.dir().join(format!("{name}.making"));
    let _ = fs::remove_dir_all(&path);
    let created = fs::DirBuilder::new().mode(0o700).create(&path);
    created.map_err(|source| MakeError::File { path: path.clone(), source })?;
    Ok(WorkDir(path))
}

/// Runs the machine until its VMM has saved it.
fn run(config: &Config, caller: Caller, dir: &Path, file: &File, log: &Log) -> Result<(), MakeError> {
    let maps = IdMaps::for_caller(caller)?;
    let namespaces = VmmNamespaces { maps, network: NetworkNamespace::New };
    let options = VmmOptions { program: &config.vmm, dir, terminal: None, oom_score_adj: 0 };
    let mut vmm = spawn(&options, &namespaces, log)?;
    let configure = SandboxConfig {
        memory_mib: MEMORY_MIB,
        vcpus: 1,
        max_vcpus: host_cpus().min(config.max_vcpus),
        has_cgroup: false,
        network_slots: NETWORK_SLOTS,
        main_container: String::new(),
        has_console_log: false,
        template: TemplateUse::Make,
        jail: vmm.jail,
    };
    let (tasks, _helper) = connection().map_err(VmmError::Socket)?;
    let (node_maker, _node_maker) = connection().map_err(VmmError::Socket)?;
    let files = MachineFiles::open(config, None, dir, HelperConnections { tasks, node_maker })?;
    let descriptors: Vec<BorrowedFd<'_>> = files.descriptors().into_iter().chain([file.as_fd()]).collect();
    let mut client = Client::from_stream(vmm.control.try_clone().map_err(VmmError::Socket)?);
    client.send(&Request::Configure(configure), &descriptors)?;
    let ending = vmm.ending(dir, config.start_timeout);
    match ending.status {
        Some(status) if status.success() => Ok(()),
        _ => Err(MakeError::NotSaved(ending)),
    }
}

/// Starts a process that makes the template for `config`, unless that has failed recently. The caller does not wait for it.
pub(crate) fn make_in_background(config: &Config, log: &Log) {
    if name(config).is_ok_and(|name| TemplateStore::new(config).has_failed_recently(&name)) {
        return;
    }
    let mut command = Command::new(&config.program);
    if let Some(file) = &config.file {
        command.arg("--config").arg(file);
    }
    command.args(["template", "create", "--background"]).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let prepare = || {
        nix::unistd::setsid()?;
        rustix::process::nice(BACKGROUND_NICENESS)?;
        Ok(close_all_on_exec()?)
    };
    // SAFETY: the closure makes system calls only and takes no lock, so it is sound between `fork` and `execve`.
    unsafe { command.pre_exec(prepare) };
    match command.spawn() {
        Ok(_) => log.debug("a template is made in the background"),
        Err(error) => log.warn(&format!("cannot start the process that makes a template: {error}")),
    }
}
