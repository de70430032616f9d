//! The global options and the commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::options::{
    CreateArgs, DeleteArgs, EventsArgs, ExecArgs, IdArgs, KillArgs, ListArgs, PsArgs, RunArgs, SpecArgs,
    UnsupportedArgs, path_or_none,
};
use super::template::TemplateCommand;
use super::update::UpdateArgs;
use crate::base::log::Format;
use crate::host::cgroup::placement::CgroupManager;
use crate::host::oom_notifier;
use crate::sandbox::helper;
use crate::sandbox::interfaces::UPDATE_COMMAND;

/// Runs OCI containers, each in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(name = "vmrt", version = VERSION, disable_version_flag = true, arg_required_else_help = true)]
// As in Go's flag package, the last occurrence of an option counts. This applies to the options of the commands, too.
#[command(args_override_self = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// The versions of vmrt and of the runtime specification, in runc's format.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.0.2");

/// The options before the command.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Log debug messages
    #[arg(long)]
    pub(crate) debug: bool,
    /// File to append the log to, instead of standard error
    #[arg(long, value_name = "FILE", value_parser = path_or_none())]
    pub(crate) log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub(crate) log_format: Format,
    /// Directory of the containers' state [default: /run/vmrt, without root $XDG_RUNTIME_DIR/vmrt]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Configuration file to read instead of /etc/vmrt/config.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Let systemd create the container's cgroup on the host; linux.cgroupsPath is then `slice:prefix:name`
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Manager that creates the container's cgroup on the host
    #[arg(long, value_enum, default_value_t = CgroupManager::Cgroupfs, value_name = "MANAGER")]
    pub(crate) cgroup_manager: CgroupManager,
    /// Whether to run without a cgroup if none was asked for and creating one is not permitted: true, false, or auto, which is true
    /// without root
    #[arg(long, value_name = "BOOL", default_value = "auto")]
    pub(crate) rootless: String,
    /// Accepted, without effect: containers are not checkpointed with CRIU
    #[arg(long, value_name = "FILE", hide = true)]
    criu: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check whether this host can run virtual machines
    Check,
    /// Not supported yet
    Checkpoint(UnsupportedArgs),
    /// Create a container
    Create(CreateArgs),
    /// Delete a stopped container
    Delete(DeleteArgs),
    /// Print a container's resource usage and out-of-memory events
    Events(EventsArgs),
    /// Run a further process in a container
    Exec(Box<ExecArgs>),
    /// Print the features of this runtime
    Features,
    /// Do for a VMM what its jail forbids; run by create and run
    #[command(name = helper::COMMAND, hide = true)]
    SandboxHelper(IdArgs),
    /// Have the host count an OOM kill; run by the helper
    #[command(name = oom_notifier::COMMAND, hide = true)]
    OomNotifier,
    /// Update the guest's interfaces from its network namespace; run by the helper
    #[command(name = UPDATE_COMMAND, hide = true)]
    UpdateInterfaces(IdArgs),
    /// Send a signal to a container's first process
    Kill(KillArgs),
    /// List the containers
    List(ListArgs),
    /// Suspend all processes of a container
    Pause(IdArgs),
    /// List the processes of a container
    Ps(PsArgs),
    /// Not supported yet
    Restore(UnsupportedArgs),
    /// Resume the processes of a paused container
    Resume(IdArgs),
    /// Create a container, start it and wait for its end
    Run(RunArgs),
    /// Write a config.json to start from
    Spec(SpecArgs),
    /// Execute the program of a created container
    Start(IdArgs),
    /// Print a container's state
    State(IdArgs),
    /// Manage the templates from which machines start
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Change a container's limits
    Update(Box<UpdateArgs>),
}

/// The prefix of a command's error message, and its exit status unless the error determines one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailurePrefix {
    pub(crate) text: &'static str,
    pub(crate) exit_code: u8,
}

impl Command {
    /// Returns runc's prefix and exit status for a failure of this command.
    pub(crate) fn failure_prefix(&self) -> FailurePrefix {
        let (text, exit_code) = match self {
            Self::Create(_) => ("vmrt create failed: ", 1),
            Self::Run(_) => ("vmrt run failed: ", 1),
            Self::Exec(_) => ("exec failed: ", 255),
            _ => ("", 1),
        };
        FailurePrefix { text, exit_code }
    }
}
