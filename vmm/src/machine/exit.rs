//! How the end of a machine is told: whoever sees it first says why, once.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a machine ended by itself.
#[derive(Debug, Error)]
pub enum MachineExit {
    /// The guest reset its processor, which is also how it powers off.
    #[error("the guest reset its machine")]
    Reset,
    /// The guest's kernel panicked.
    #[error("the guest's kernel panicked: {0}")]
    Panic(String),
    /// The agent, the guest's first process, could not go on and said why.
    #[error("the guest's agent gave up: {0}")]
    Agent(String),
    /// A vCPU cannot go on.
    #[error("vCPU {id} stopped")]
    Vcpu {
        /// Number of the vCPU.
        id: u8,
        /// Why.
        source: VcpuError,
    },
}

/// Why a vCPU cannot go on.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// `KVM_RUN` failed.
    #[error("KVM cannot run it")]
    Run(#[source] kvm_ioctls::Error),
    /// The processor refused the vCPU's state.
    #[error("the processor refused its state (reason {reason:#x}, on CPU {cpu})")]
    FailEntry {
        /// Hardware's own code.
        reason: u64,
        /// Host CPU.
        cpu: u32,
    },
    /// KVM gave up, mostly at an instruction that it had to interpret and does not know.
    #[error("KVM met an internal error: {kind} (suberror {suberror}, at {rip:#x}, data {data:x?})")]
    Internal {
        /// The suberror in words.
        kind: &'static str,
        /// `kvm_run.internal.suberror`.
        suberror: u32,
        /// The guest's instruction pointer.
        rip: u64,
        /// `kvm_run.internal.data`.
        data: Vec<u64>,
    },
    /// The guest crashed itself through a paravirtual interface.
    #[error("the guest reported system event {0}")]
    SystemEvent(u32),
    /// An exit this machine has no use for.
    #[error("KVM stopped it for a reason this machine does not know: {0}")]
    Unknown(String),
}

/// Tells the end.
#[derive(Debug)]
pub struct ExitSender {
    sender: SyncSender<MachineExit>,
    event: EventFd,
}

/// Hears of the end. Its descriptor is readable from then on.
#[derive(Debug)]
pub struct ExitReceiver {
    receiver: Receiver<MachineExit>,
    event: EventFd,
}

/// Both ends.
///
/// # Errors
/// There is no descriptor left.
pub fn channel() -> io::Result<(ExitSender, ExitReceiver)> {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let (sender, receiver) = sync_channel(1);
    Ok((ExitSender { sender, event: event.try_clone()? }, ExitReceiver { receiver, event }))
}

impl ExitSender {
    /// Says why the machine ended. Only the first reason is heard.
    pub fn tell(&self, exit: MachineExit) {
        tracing::debug!(?exit, "the machine ends");
        if self.sender.try_send(exit).is_ok()
            && let Err(error) = self.event.write(1)
        {
            tracing::error!(%error, "cannot tell that the machine ended");
        }
    }
}

impl ExitReceiver {
    /// Why the machine ended, if it did.
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
    fn the_first_reason_is_heard_once() {
        let (sender, receiver) = channel().unwrap();
        assert!(receiver.take().is_none());
        sender.tell(MachineExit::Panic("out of memory".to_owned()));
        sender.tell(MachineExit::Reset);
        assert_eq!(receiver.event.read().unwrap(), 1);
        assert_eq!(receiver.take().unwrap().to_string(), "the guest's kernel panicked: out of memory");
        assert!(receiver.take().is_none());
    }
}
