//! The options of the commands, except those of `update`, which are in `update.rs`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, ValueEnum};

use super::duration;

/// The id of a container.
#[derive(Args, Debug)]
pub(crate) struct IdArgs {
    /// The container's id
    pub(crate) id: String,
}

/// Options of `create` and `run`.
#[derive(Args, Debug)]
pub(crate) struct BundleArgs {
    /// Directory of the bundle [default: the working directory]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,
    /// File with the specification, instead of the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Unix socket to send the master of the container's pseudoterminal to
    #[arg(long, value_name = "SOCKET", value_parser = path_or_none())]
    pub(crate) console_socket: Option<PathBuf>,
    /// File to write the pid of the container's VMM to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket to send a pidfd of the container's VMM to
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Accepted, without effect: the container's root is never the host's
    #[arg(long)]
    no_pivot: bool,
    /// Accepted, without effect: keyrings belong to the guest's kernel
    #[arg(long)]
    no_new_keyring: bool,
    /// Number of descriptors to pass; more than 0 is refused, since descriptors of the host mean nothing to the guest's kernel
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
}

/// Options of `create`.
#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) bundle: BundleArgs,
    /// Id of the new container
    pub(crate) id: String,
}

/// Options of `run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) bundle: BundleArgs,
    /// Do not wait for the end of the container
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Do not delete the container after its end
    #[arg(long)]
    pub(crate) keep: bool,
    /// Give the first process a terminal, regardless of config.json
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Print the time of each stage, in milliseconds, on standard error
    #[arg(long, value_enum, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    pub(crate) timeline: Option<ListFormat>,
    /// Accepted, without effect: a VMM has no children to reap
    #[arg(long)]
    no_subreaper: bool,
    /// Id of the new container, or the directory of a bundle, whose name is then the id
    // Not a `PathBuf`: the parser would refuse an empty one with an error message of its own.
    pub(crate) id: OsString,
}

/// Options of `delete`.
#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    /// Kill the container if it still runs; succeed if it does not exist
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The container's id
    pub(crate) id: String,
}

/// Options of `kill`.
#[derive(Args, Debug)]
pub(crate) struct KillArgs {
    /// Send the signal to every process of the container
    #[arg(short, long)]
    pub(crate) all: bool,
    /// The container's id
    pub(crate) id: String,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM", allow_hyphen_values = true)]
    pub(crate) signal: String,
}

/// Options of `exec`.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// Unix socket to send the master of the process's pseudoterminal to
    #[arg(long, value_name = "SOCKET", value_parser = path_or_none())]
    pub(crate) console_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// User, and optionally group, to run as
    #[arg(short, long, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// Additional group
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// File with the specification of the process
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Do not wait for the end of the process
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// File to write the pid of the process's proxy on the host to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket to send a pidfd of the process's proxy on the host to
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Refused: the guest's kernel has no SELinux
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,
    /// Refused: the guest's kernel has no AppArmor
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// Do not let the process gain privileges
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Add a capability
    #[arg(short, long, value_name = "CAPABILITY")]
    pub(crate) cap: Vec<String>,
    /// Number of descriptors to pass; more than 0 is refused, since descriptors of the host mean nothing to the guest's kernel
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Existing cgroup below the container's to run the process in
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Vec<String>,
    /// Accept a paused container: the process starts when the container is resumed
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// The container's id
    pub(crate) id: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// Arguments of a command that is not supported yet.
#[derive(Args, Debug)]
pub(crate) struct UnsupportedArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<OsString>,
}

/// Options of `events`.
#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    /// Time between two reports of the resource usage, such as `5s` or `500ms`
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration::parse)]
    pub(crate) interval: Duration,
    /// Print the resource usage once
    #[arg(long)]
    pub(crate) stats: bool,
    /// The container's id
    pub(crate) id: String,
}

/// Options of `ps`.
#[derive(Args, Debug)]
pub(crate) struct PsArgs {
    /// Output format: a table of the guest's processes, or an array of pids of the host
    #[arg(short, long, value_enum, default_value_t = ListFormat::Table)]
    pub(crate) format: ListFormat,
    /// The container's id
    pub(crate) id: String,
    /// Options of ps(1): -e -f -a -x -u, and -o with a list of columns [default: -ef]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

/// The output format of `list` and `ps`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum ListFormat {
    /// A table.
    Table,
    /// A JSON array.
    Json,
}

/// Options of `list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = ListFormat::Table)]
    pub(crate) format: ListFormat,
    /// Print only the ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Options of `spec`.
#[derive(Args, Debug)]
pub(crate) struct SpecArgs {
    /// Directory of the bundle [default: the working directory]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,
    /// Write it for a caller without root: with a user namespace whose root is the caller
    #[arg(long)]
    pub(crate) rootless: bool,
}

/// Returns a parser of a path that may be empty, which means no path.
pub(super) fn path_or_none() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}
