//! `seccomp(2)`.

use rustix::io::Errno;

use super::{Result, check};

/// Installs `program` as a filter of the caller's system calls. It may have 65535 instructions at most; `flags` are
/// `SECCOMP_FILTER_FLAG_*`.
pub(crate) fn install_filter(flags: u32, program: &[libc::sock_filter]) -> Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` is a valid sock_fprog whose length is the number of its instructions. The kernel copies them
    // and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })?;
    Ok(())
}
