//! Real-time priorities of the agent and of new processes.

use crate::error::Error;
use crate::sys::scheduling::{self, SchedulerAttr};

/// Gives the agent a real-time priority, so that neither the kernel's own work nor the processes of containers delay
/// its reports. The agent is rarely active, and the kernel limits the CPU time of real-time processes.
pub(crate) fn raise_for_agent() -> Result<(), Error> {
    set_real_time(2)
}

/// Gives a new process a real-time priority below the agent's until it is set up. Otherwise a container with thousands
/// of busy processes would delay its set-up for too long.
pub(crate) fn raise_for_new_process() -> Result<(), Error> {
    set_real_time(1)
}

fn set_real_time(priority: u32) -> Result<(), Error> {
    let attr = SchedulerAttr { policy: libc::SCHED_FIFO.cast_unsigned(), priority, ..SchedulerAttr::normal() };
    scheduling::set_scheduler(scheduling::CALLER, &attr).map_err(Error::at("set a real-time scheduling policy"))
}
