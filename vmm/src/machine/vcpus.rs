//! Making vCPUs, before the machine runs and while it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use kvm_ioctls::VmFd;

use super::MachineError;
use super::vcpu::{self, Shared, Vcpu};
use crate::arch::{self, CpuidTemplate};

/// What every vCPU of a machine is made with.
pub(super) struct Factory {
    pub(super) vm: Arc<VmFd>,
    pub(super) cpuid: CpuidTemplate,
    pub(super) shared: Shared,
}

impl Factory {
    /// The vCPU whose APIC id is `id`. But for the first it waits until the guest starts it.
    pub(super) fn create(&self, id: u8) -> Result<Vcpu, MachineError> {
        let fd = self.vm.create_vcpu(u64::from(id)).map_err(|error| MachineError::CreateVcpu(id, error))?;
        arch::set_up_vcpu(&fd, id, &self.cpuid).map_err(|error| MachineError::SetUpVcpu(id, error))?;
        Ok(Vcpu { id, fd, shared: self.shared.clone() })
    }
}

/// The threads of vCPUs that run. They stop when it is dropped.
pub(super) struct Threads {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Threads {
    /// None yet. `stop` is what the vCPUs look at.
    pub(super) fn new(stop: Arc<AtomicBool>) -> Self {
        Self { threads: Vec::new(), stop }
    }

    pub(super) fn run(&mut self, vcpu: Vcpu) -> Result<(), MachineError> {
        let id = vcpu.id;
        self.threads.push(vcpu.spawn().map_err(|error| MachineError::Thread(id, error))?);
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.iter().for_each(vcpu::kick);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

/// Makes one vCPU run beside the others.
type Add = Box<dyn FnMut(u8) -> Result<(), MachineError> + Send>;

/// Makes vCPUs for a machine that runs. The guest was told at boot that they may come, and starts them when its agent is
/// asked to.
pub struct VcpuSource {
    add: Add,
    count: u8,
    most: u8,
}

impl std::fmt::Debug for VcpuSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuSource").field("count", &self.count).field("most", &self.most).finish_non_exhaustive()
    }
}

impl VcpuSource {
    /// For a machine that has `count` vCPUs.
    pub(super) fn new(factory: Factory, count: u8, most: u8) -> Self {
        let mut threads = Threads::new(Arc::clone(&factory.shared.stop));
        let add = move |id| {
            let vcpu = factory.create(id)?;
            arch::connect_vcpu(&vcpu.fd).map_err(|error| MachineError::SetUpVcpu(id, error))?;
            threads.run(vcpu)
        };
        Self::with(count, most, Box::new(add))
    }

    /// One that has `add` make the vCPU of an id.
    pub(crate) fn with(count: u8, most: u8, add: Add) -> Self {
        Self { add, count, most }
    }

    /// Number of vCPUs there are.
    #[must_use]
    pub fn count(&self) -> u8 {
        self.count
    }

    /// Number of vCPUs there can be.
    #[must_use]
    pub fn most(&self) -> u8 {
        self.most
    }

    /// Makes vCPUs until there are `count` of them, or as many as there can be. None is ever taken away.
    ///
    /// # Errors
    /// KVM refused, or the host has no thread left; those that were made stay.
    pub fn grow(&mut self, count: u8) -> Result<(), MachineError> {
        while self.count < count.min(self.most) {
            (self.add)(self.count)?;
            self.count += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_made() {
        let (sender, made) = std::sync::mpsc::channel();
        let mut source = VcpuSource::with(
            2,
            5,
            Box::new(move |id| {
                sender.send(id).unwrap();
                Ok(())
            }),
        );
        source.grow(1).unwrap();
        source.grow(4).unwrap();
        source.grow(3).unwrap();
        source.grow(9).unwrap();
        assert_eq!((made.try_iter().collect::<Vec<_>>(), source.count()), (vec![2, 3, 4], 5));
    }

    #[test]
    fn one_that_could_not_be_made_is_tried_again() {
        let mut left = 1;
        let add = move |id| {
            left -= 1;
            if left >= 0 { Ok(()) } else { Err(MachineError::Thread(id, std::io::ErrorKind::WouldBlock.into())) }
        };
        let mut source = VcpuSource::with(1, 3, Box::new(add));
        assert!(source.grow(3).unwrap_err().to_string().contains("vCPU 2"));
        assert_eq!(source.count(), 2);
    }
}
