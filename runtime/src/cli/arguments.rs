//! The arguments of this process: options before the command, and the commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::options::{
    CreateArgs, DeleteArgs, EventsArgs, ExecArgs, IdArgs, KillArgs, ListArgs, PsArgs, RunArgs, SpecArgs,
    UnsupportedArgs, path_or_none,
};
use super::update::UpdateArgs;
use crate::base::log::Format;
use crate::host::cgroup::placement::CgroupManager;
use crate::sandbox::interfaces::FOLLOW_COMMAND;

/// Runs OCI containers, each in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(name = "vmrt", version = VERSION, disable_version_flag = true, arg_required_else_help = true)]
// As Go's flags have it: of an option that is given twice, the last one counts. This goes for the commands, too.
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

/// The version, and that of the runtime specification, as runc prints them.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.0.2");

/// Options before the command.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Tell what is done
    #[arg(long)]
    pub(crate) debug: bool,
    /// File to append the log to, in place of standard error
    #[arg(long, value_name = "FILE", value_parser = path_or_none())]
    pub(crate) log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub(crate) log_format: Format,
    /// Directory of the containers' state [default: /run/vmrt, or vmrt in $XDG_RUNTIME_DIR for who is not root]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Configuration to read in place of /etc/vmrt/config.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Have systemd make the container's cgroup on the host: linux.cgroupsPath is `slice:prefix:name` then
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// What makes the container's cgroup on the host
    #[arg(long, value_enum, default_value_t = CgroupManager::Cgroupfs, value_name = "MANAGER")]
    pub(crate) cgroup_manager: CgroupManager,
    /// Whether to do without a cgroup that may not be made and was not asked for: auto is for who is not root
    #[arg(long, value_name = "BOOL", default_value = "auto")]
    pub(crate) rootless: String,
    /// Accepted and not used: containers are not checkpointed with CRIU
    #[arg(long, value_name = "FILE", hide = true)]
    criu: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check whether this host can run virtual machines well
    Check,
    /// Not supported yet
    Checkpoint(UnsupportedArgs),
    /// Create a container
    Create(CreateArgs),
    /// Delete what a stopped container holds
    Delete(DeleteArgs),
    /// Tell what a container uses, and when its memory runs out
    Events(EventsArgs),
    /// Run a further process in a container
    Exec(Box<ExecArgs>),
    /// Print what this runtime can do
    Features,
    /// Have the guest follow the interfaces of its network namespace; for the VMM
    #[command(name = FOLLOW_COMMAND, hide = true)]
    FollowInterfaces(IdArgs),
    /// Send a signal to a container's first process
    Kill(KillArgs),
    /// List the containers
    List(ListArgs),
    /// Stop every process of a container where it is
    Pause(IdArgs),
    /// Show the processes of a container
    Ps(PsArgs),
    /// Not supported yet
    Restore(UnsupportedArgs),
    /// Let the processes of a paused container go on
    Resume(IdArgs),
    /// Create a container, start it and wait for its end
    Run(RunArgs),
    /// Write a starter config.json
    Spec(SpecArgs),
    /// Execute the program of a created container
    Start(IdArgs),
    /// Print a container's state
    State(IdArgs),
    /// Change a container's limits
    Update(Box<UpdateArgs>),
}

/// How a command's failure is told unless the failure itself decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailurePrefix {
    pub(crate) text: &'static str,
    pub(crate) exit_code: u8,
}

impl Command {
    /// runc's words before the cause, and its status.
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
