//! Creates vCPUs, before the machine runs and while it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use kvm_ioctls::VmFd;

use super::kick::{install_kick_handler, kick};
use super::thread::{Vcpu, VcpuContext};
use crate::arch::{self, CpuidTemplate};
use crate::machine::MachineError;

/// Creates the vCPUs of one machine.
pub(in crate::machine) struct VcpuFactory {
    pub(in crate::machine) vm: Arc<VmFd>,
    pub(in crate::machine) cpuid: CpuidTemplate,
    pub(in crate::machine) context: VcpuContext,
}

impl VcpuFactory {
    /// The vCPU with APIC id `id`. Every vCPU but the first waits until the guest starts it.
    pub(in crate::machine) fn create(&self, id: u8) -> Result<Vcpu, MachineError> {
        // Here and not on the thread, because the threads that start one later may install no handler.
        install_kick_handler();
        let fd = self.vm.create_vcpu(u64::from(id)).map_err(|error| MachineError::CreateVcpu(id, error))?;
        arch::set_up_vcpu(&fd, id, &self.cpuid).map_err(|error| MachineError::SetUpVcpu(id, error))?;
        Ok(Vcpu { id, fd, context: self.context.clone(), is_restored: false })
    }
}

/// The threads of running vCPUs. Dropping it stops and joins them.
pub(in crate::machine) struct VcpuThreads {
    threads: Vec<JoinHandle<Vcpu>>,
    stop: Arc<AtomicBool>,
}

impl VcpuThreads {
    /// No threads. `stop` is the flag that the vCPUs check.
    pub(in crate::machine) fn new(stop: Arc<AtomicBool>) -> Self {
        Self { threads: Vec::new(), stop }
    }

    /// Runs a vCPU.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub(in crate::machine) fn run(&mut self, vcpu: Vcpu) -> Result<(), MachineError> {
        let id = vcpu.id;
        self.threads.push(vcpu.spawn().map_err(|error| MachineError::Thread(id, error))?);
        Ok(())
    }
}

impl VcpuThreads {
    /// Stops the vCPUs and returns them.
    pub(in crate::machine) fn stop(mut self) -> Vec<Vcpu> {
        self.join()
    }

    fn join(&mut self) -> Vec<Vcpu> {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.iter().for_each(kick);
        let joined = self.threads.drain(..).map(JoinHandle::join);
        joined.filter_map(|result| result.inspect_err(|_| tracing::error!("a vCPU thread panicked")).ok()).collect()
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        drop(self.join());
    }
}

/// Creates and runs the vCPU with an APIC id.
type AddVcpu = Box<dyn FnMut(u8) -> Result<(), MachineError> + Send>;

/// Creates vCPUs for a running machine. The boot parameters announce all vCPUs that are possible; the guest starts one when its
/// agent is asked to.
pub struct VcpuSource {
    add: AddVcpu,
    count: u8,
    max_count: u8,
}

impl std::fmt::Debug for VcpuSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuSource")
            .field("count", &self.count)
            .field("max_count", &self.max_count)
            .finish_non_exhaustive()
    }
}

impl VcpuSource {
    /// A source for a machine with `count` vCPUs, which can have `max_count`.
    pub(in crate::machine) fn new(factory: VcpuFactory, count: u8, max_count: u8) -> Self {
        let mut threads = VcpuThreads::new(Arc::clone(&factory.context.stop));
        let add = move |id| {
            let vcpu = factory.create(id)?;
            arch::refresh_apic_map(&vcpu.fd).map_err(|error| MachineError::SetUpVcpu(id, error))?;
            threads.run(vcpu)
        };
        Self::with(count, max_count, Box::new(add))
    }

    /// A source that calls `add` with the id of each vCPU to create.
    pub(crate) fn with(count: u8, max_count: u8, add: AddVcpu) -> Self {
        Self { add, count, max_count }
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn count(&self) -> u8 {
        self.count
    }

    /// Most vCPUs that the machine can have.
    #[must_use]
    pub fn max_count(&self) -> u8 {
        self.max_count
    }

    /// Creates vCPUs until there are `count` of them, or [`VcpuSource::max_count`]. It never removes one.
    ///
    /// # Errors
    /// KVM refused, or a thread cannot be created. The vCPUs that were created stay.
    pub fn grow(&mut self, count: u8) -> Result<(), MachineError> {
        while self.count < count.min(self.max_count) {
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
    fn only_missing_vcpus_are_created() {
        let (sender, created) = std::sync::mpsc::channel();
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
        assert_eq!((created.try_iter().collect::<Vec<_>>(), source.count()), (vec![2, 3, 4], 5));
    }

    #[test]
    fn after_a_failure_the_created_vcpus_stay() {
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
