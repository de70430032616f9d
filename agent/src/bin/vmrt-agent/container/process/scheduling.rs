//! A process's scheduling policy and I/O priority.

use oci_spec::runtime::{IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process, Scheduler};

use crate::error::Error;
use crate::sys::scheduling::{self, SchedulerAttr};

/// The attributes of the specification, as numbers of the kernel.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Scheduling {
    scheduler: Option<SchedulerAttr>,
    /// Class and level.
    io_priority: Option<(i32, i32)>,
}

impl Scheduling {
    /// Checks `process.scheduler` and `process.ioPriority`.
    pub(crate) fn new(process: &Process) -> Result<Self, Error> {
        let io_priority = process.io_priority().as_ref().map(|priority| {
            let class = match priority.class() {
                IOPriorityClass::IoprioClassRt => 1,
                IOPriorityClass::IoprioClassBe => 2,
                IOPriorityClass::IoprioClassIdle => 3,
            };
            let level = i32::try_from(priority.priority()).ok().filter(|level| (0..8).contains(level));
            level
                .map(|level| (class, level))
                .ok_or_else(|| Error::invalid("process.ioPriority", "is not between 0 and 7"))
        });
        let scheduler = process.scheduler().as_ref().map(convert_scheduler);
        Ok(Self { scheduler: scheduler.transpose()?, io_priority: io_priority.transpose()? })
    }

    /// Whether the specification leaves the scheduling policy at the default.
    pub(crate) fn is_normal(&self) -> bool {
        self.scheduler.is_none()
    }

    /// Applies the attributes to the caller. The agent itself sets the default policy, by [`set_normal_policy`].
    pub(crate) fn apply(&self) -> Result<(), Error> {
        if let Some(scheduler) = &self.scheduler {
            // From the default policy, the permission to set another one is the same as on a host.
            set_normal_policy(scheduling::CALLER)?;
            scheduling::set_scheduler(scheduling::CALLER, scheduler).map_err(Error::at("set scheduling policy"))?;
        }
        if let Some((class, level)) = self.io_priority {
            scheduling::set_io_priority(class, level).map_err(Error::at("set I/O priority"))?;
        }
        Ok(())
    }
}

/// Sets the default policy of process `pid`, which ends its real-time priority. The process cannot do that itself,
/// because its seccomp filter may forbid it.
pub(crate) fn set_normal_policy(pid: i32) -> Result<(), Error> {
    scheduling::set_scheduler(pid, &SchedulerAttr::normal()).map_err(Error::at("set the default scheduling policy"))
}

fn convert_scheduler(scheduler: &Scheduler) -> Result<SchedulerAttr, Error> {
    let priority = scheduler.priority().unwrap_or(0);
    let flags = scheduler.flags().iter().flatten().map(|flag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    });
    let priority = u32::try_from(priority).map_err(|_| Error::invalid("process.scheduler.priority", "is negative"))?;
    Ok(SchedulerAttr {
        size: scheduling::SCHEDULER_ATTR_SIZE,
        policy: policy_number(*scheduler.policy()),
        flags: flags.fold(0, |all, flag| all | flag),
        nice: scheduler.nice().unwrap_or(0),
        priority,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    })
}

/// The kernel's numbers.
fn policy_number(policy: LinuxSchedulerPolicy) -> u32 {
    match policy {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxIOPriorityBuilder, ProcessBuilder};

    use super::*;

    #[test]
    fn an_io_priority_outside_the_range_is_refused() {
        let process = |level: i64| {
            let priority = LinuxIOPriorityBuilder::default().class(IOPriorityClass::IoprioClassIdle).priority(level);
            ProcessBuilder::default().io_priority(priority.build().unwrap()).build().unwrap()
        };
        assert_eq!(Scheduling::new(&process(7)).unwrap().io_priority, Some((3, 7)));
        assert!(Scheduling::new(&process(8)).is_err());
        assert!(Scheduling::new(&process(-1)).is_err());
    }
}
