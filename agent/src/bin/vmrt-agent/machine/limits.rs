//! Limits and kernel parameters of the guest.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::error::Error;
use crate::sys::files;

/// Processes and threads that the guest may have: as many as hosts with systemd, however little memory it boots with. What they
/// take of that counts for their container.
pub(crate) const MAX_PIDS: u64 = 4_194_304;

/// What the kernel is told of once.
const KERNEL_PARAMETERS: [(&str, &str); 5] = [
    // Otherwise the fallback device of every tunnel driver is made in every new network namespace.
    ("net/core/fb_tunnels_only_for_init_net", "1"),
    // How many descriptors a process may be allowed: what hosts with systemd have.
    ("fs/nr_open", "1073741816"),
    ("kernel/pid_max", "4194304"),
    ("kernel/threads-max", "4194304"),
    // Nobody reads the list of all processes that the kernel would make whenever memory runs out, and many take it long.
    ("vm/oom_dump_tasks", "0"),
];

/// Has users other than root have as many processes and pending signals as on a host where the guest's number of processes is
/// usual: half of them.
pub(crate) fn raise() -> Result<(), Error> {
    let half = Some(MAX_PIDS / 2);
    for resource in [Resource::Nproc, Resource::Sigpending] {
        setrlimit(resource, Rlimit { current: half, maximum: half })
            .map_err(Error::at(format!("set limit {resource:?}")))?;
    }
    Ok(())
}

pub(crate) fn set_kernel_parameters(proc: BorrowedFd<'_>) -> Result<(), Error> {
    for (name, value) in KERNEL_PARAMETERS {
        match files::write_at(proc, &format!("sys/{name}"), value.as_bytes()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(Error::at(format!("set kernel parameter {name} of the guest"))(error)),
        }
    }
    Ok(())
}
