//! Programs that the VMM runs on the host: one that makes the host's cgroup count an OOM kill, and the runtime, which applies
//! changes of network interfaces to the guest.

mod child;
mod interface_monitor;
mod oom_notifier;

pub(super) use child::ChildProcess;
pub(super) use interface_monitor::InterfaceMonitor;
pub(super) use oom_notifier::OomNotifier;
