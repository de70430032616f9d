//! Reports the end of a machine. Several threads may detect it; the first report counts.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a machine ended.
#[derive(Debug, Error)]
pub enum MachineExit {
    /// The guest reset its processor. A guest also powers off this way.
    #[error("the guest reset its machine")]
    Reset,
    /// The guest's kernel panicked.
    #[error("the guest's kernel panicked: {0}")]
    Panic(String),
    /// The agent, which is the guest's first process, failed and printed why.
    #[error("the guest's agent failed: {0}")]
    Agent(String),
    /// The machine was saved as a template.
    #[error("the machine was saved as a template")]
    Saved,
    /// The machine was stopped, but cannot be saved as a template.
    #[error("the machine cannot be saved as a template")]
    NotSaved(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A vCPU cannot continue.
    #[error("vCPU {id} stopped")]
    Vcpu {
        /// Number of the vCPU.
        id: u8,
        /// The cause.
        source: VcpuError,
    },
}

/// Why a vCPU cannot continue.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// The system calls of its thread cannot be limited.
    #[error("the system calls of its thread cannot be limited")]
    Confine(#[source] io::Error),
    /// `KVM_RUN` failed.
    #[error("KVM cannot run it")]
    Run(#[source] kvm_ioctls::Error),
    /// The processor refused the vCPU's state (`KVM_EXIT_FAIL_ENTRY`).
    #[error("the processor refused its state (reason {reason:#x}, on CPU {cpu})")]
    FailEntry {
        /// The hardware's reason code.
        reason: u64,
        /// Number of the host CPU.
        cpu: u32,
    },
    /// KVM failed internally (`KVM_EXIT_INTERNAL_ERROR`), mostly at an instruction that it cannot emulate.
    #[error("KVM met an internal error: {kind} (suberror {suberror}, at {rip:#x}, data {data:x?})")]
    Internal {
        /// Description of the suberror.
        kind: &'static str,
        /// `kvm_run.internal.suberror`.
        suberror: u32,
        /// The guest's instruction pointer.
        rip: u64,
        /// `kvm_run.internal.data`.
        data: Vec<u64>,
    },
    /// The guest reported a crash through a paravirtual interface (`KVM_EXIT_SYSTEM_EVENT`).
    #[error("the guest reported system event {0}")]
    SystemEvent(u32),
    /// The machine does not handle the exit.
    #[error("KVM returned an exit that the VMM does not handle: {0}")]
    Unknown(String),
}

/// Reports the end of the machine.
#[derive(Debug)]
pub struct ExitSender {
    sender: SyncSender<MachineExit>,
    event: EventFd,
}

/// Receives the reported end. Its descriptor becomes readable with the report and stays so.
#[derive(Debug)]
pub struct ExitReceiver {
    receiver: Receiver<MachineExit>,
    event: EventFd,
}

/// Creates a connected sender and receiver.
///
/// # Errors
/// No file descriptor is left.
pub fn channel() -> io::Result<(ExitSender, ExitReceiver)> {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let (sender, receiver) = sync_channel(1);
    Ok((ExitSender { sender, event: event.try_clone()? }, ExitReceiver { receiver, event }))
}

impl ExitSender {
    /// Reports why the machine ended. Reports after the first one are dropped.
    pub fn report(&self, exit: MachineExit) {
        tracing::debug!(?exit, "the machine ends");
        if self.sender.try_send(exit).is_ok()
            && let Err(error) = self.event.write(1)
        {
            tracing::error!(%error, "cannot report that the machine ended");
        }
    }
}

impl ExitReceiver {
    /// Why the machine ended. `None` if it runs, or if the reason was taken before.
    #[must_use]
    pub fn take(&self) -> Option<MachineExit> {
        self.receiver.try_recv().ok()
    }
}

impl AsRawFd for ExitReceiver {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reported_reason_is_received_once() {
        let (sender, receiver) = channel().unwrap();
        assert!(receiver.take().is_none());
        sender.report(MachineExit::Panic("out of memory".to_owned()));
        sender.report(MachineExit::Reset);
        assert_eq!(receiver.event.read().unwrap(), 1);
        assert_eq!(receiver.take().unwrap().to_string(), "the guest's kernel panicked: out of memory");
        assert!(receiver.take().is_none());
    }
}
