//! Real-time priorities of the agent and of new processes.

use crate::error::Error;
use crate::sys::scheduling::{self, SchedulerAttr};

/// The agent runs before everything else that could: what it has to tell, an end above all, is not held up by the kernel's own
/// clearing away, nor by what containers do. It is seldom awake, and real-time processes never get all of a CPU.
pub(crate) fn raise_for_agent() -> Result<(), Error> {
    set_real_time(2)
}

/// A new process, which is a copy of the agent, runs behind the agent and before all others until it is set up: in a container
/// with thousands of busy processes it would not get there in any time that somebody waits.
pub(crate) fn raise_for_new_process() -> Result<(), Error> {
    set_real_time(1)
}

fn set_real_time(priority: u32) -> Result<(), Error> {
    let attr = SchedulerAttr { policy: libc::SCHED_FIFO.cast_unsigned(), priority, ..SchedulerAttr::normal() };
    scheduling::set_scheduler(scheduling::CALLER, &attr).map_err(Error::at("become a real-time process"))
}
