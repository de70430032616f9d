//! Scheduling policies and I/O priorities.

use std::ffi::c_int;
use std::mem::size_of;
use std::ptr;

use super::{Result, check};

/// The kernel's `struct sched_attr`, first version.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub(crate) struct SchedulerAttr {
    /// [`SCHEDULER_ATTR_SIZE`].
    pub(crate) size: u32,
    /// `SCHED_*`.
    pub(crate) policy: u32,
    /// `SCHED_FLAG_*`.
    pub(crate) flags: u64,
    /// Nice value, for the policies that have one.
    pub(crate) nice: i32,
    /// Static priority, for the real-time policies.
    pub(crate) priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) period: u64,
}

impl SchedulerAttr {
    /// The default policy, `SCHED_NORMAL` with nice value 0.
    pub(crate) fn normal() -> Self {
        Self { size: SCHEDULER_ATTR_SIZE, policy: libc::SCHED_OTHER.cast_unsigned(), ..Self::default() }
    }
}

/// Length of [`SchedulerAttr`]: the kernel's `SCHED_ATTR_SIZE_VER0`.
pub(crate) const SCHEDULER_ATTR_SIZE: u32 = 48;

/// The pid argument that stands for the caller.
pub(crate) const CALLER: i32 = 0;

/// Sets the scheduling policy of process `pid`.
pub(crate) fn set_scheduler(pid: i32, attr: &SchedulerAttr) -> Result<()> {
    const { assert!(size_of::<SchedulerAttr>() == SCHEDULER_ATTR_SIZE as usize) };
    // SAFETY: `attr` is a valid sched_attr, and the length in it is at most its size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, ptr::from_ref(attr), 0) })?;
    Ok(())
}

/// Sets the I/O priority of the caller: class and level as in `ioprio_set(2)`.
pub(crate) fn set_io_priority(class: c_int, level: c_int) -> Result<()> {
    const WHO_PROCESS: c_int = 1;
    const CLASS_SHIFT: c_int = 13;
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << CLASS_SHIFT | level) })?;
    Ok(())
}
