//! Limits and kernel parameters of the guest.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::error::Error;
use crate::sys::files;

/// Maximum number of processes and threads of the guest: the same as on hosts with systemd, independent of the boot
/// memory. The memory that they use is charged to their container.
pub(crate) const MAX_PIDS: u64 = 4_194_304;

/// Kernel parameters that are set once.
const KERNEL_PARAMETERS: [(&str, &str); 5] = [
    // Without it every new network namespace gets the fallback device of every tunnel driver.
    ("net/core/fb_tunnels_only_for_init_net", "1"),
    // Maximum of `RLIMIT_NOFILE`: the same as on hosts with systemd.
    ("fs/nr_open", "1073741816"),
    ("kernel/pid_max", "4194304"),
    ("kernel/threads-max", "4194304"),
    // On every OOM kill the kernel would list all processes, which takes long if there are many, and nothing reads the
    // list.
    ("vm/oom_dump_tasks", "0"),
];

/// Sets the limits of processes and pending signals of users other than root to half of [`MAX_PIDS`], the kernel's
/// default on a host with that many processes.
pub(crate) fn raise() -> Result<(), Error> {
    let half = Some(MAX_PIDS / 2);
    for resource in [Resource::Nproc, Resource::Sigpending] {
        setrlimit(resource, Rlimit { current: half, maximum: half })
            .map_err(Error::at(format!("set limit {resource:?}")))?;
    }
    Ok(())
}

/// Sets [`KERNEL_PARAMETERS`] in `proc`. Parameters that the kernel does not have are left out.
pub(crate) fn set_kernel_parameters(proc: BorrowedFd<'_>) -> Result<(), Error> {
    for (name, value) in KERNEL_PARAMETERS {
        match files::write_at(proc, &format!("sys/{name}"), value.as_bytes()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(Error::at(format!("set kernel parameter {name} of the guest"))(error)),
        }
    }
    Ok(())
}
