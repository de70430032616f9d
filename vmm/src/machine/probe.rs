//! Measures how fast this host runs guests: times a short loop in supervisor mode in a temporary machine.
//!
//! Some hosts have a `/dev/kvm` without hardware support. It runs a guest's user mode at full speed and interprets its kernel.
//! KVM then opens without an error, but no guest boots in reasonable time. Only a measurement detects this.

use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::alarm;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::kvm::{self, KvmError};
use crate::arch::Memory;
use crate::arch::{VcpuSetupError, layout, run_timing_loop, set_up_boot_vcpu, timing_loop_code};

/// Turns of the loop. They take a fraction of a millisecond on hardware, and a fraction of a second in an interpreter.
pub const TURNS: u32 = 200_000;

/// Number of measurements. The shortest time counts.
const RUNS: usize = 3;

/// Seconds after which a guest that has not finished is stopped.
const TIME_LIMIT: u32 = 5;

/// Greatest ratio of the guest's time to the host's that counts as usable. On hardware both times are equal except for one entry
/// and exit of some microseconds. An interpreter is slower by three orders of magnitude.
const USABLE_RATIO: u128 = 20;

/// Memory of the temporary machine in bytes.
const MEMORY_SIZE: usize = 4096;

/// Why the loop cannot be timed.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// KVM cannot run a machine.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The machine's memory cannot be mapped.
    #[error("cannot map the memory of the test machine")]
    Memory,
    /// KVM refused to create the machine.
    #[error("cannot create the test machine")]
    Create(#[source] kvm_ioctls::Error),
    /// The vCPU's state cannot be set.
    #[error(transparent)]
    SetUp(#[from] VcpuSetupError),
    /// The loop did not finish in time.
    #[error("the test machine did not finish {TURNS} turns of a loop within {TIME_LIMIT} s")]
    TimeLimit,
    /// `KVM_RUN` failed.
    #[error("KVM cannot run the test machine")]
    Run(#[source] kvm_ioctls::Error),
    /// The vCPU left the loop for another reason than its end.
    #[error("the test machine stopped with {0}")]
    Stopped(String),
    /// The action of `SIGALRM` cannot be set.
    #[error("cannot set a time limit")]
    Alarm(#[source] nix::Error),
}

/// The result of the measurement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Measurement {
    /// Time of [`TURNS`] turns in a guest's supervisor mode.
    pub guest: Duration,
    /// Time of as many turns on the host.
    pub host: Duration,
    /// Whether guests have the TSC deadline timer, whose interrupts need no device emulation.
    pub tsc_deadline_timer: bool,
}

impl Measurement {
    /// Whether a guest's supervisor mode runs on hardware.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.guest.as_nanos() <= self.host.as_nanos().max(1) * USABLE_RATIO
    }
}

/// Times the loop. It takes less than `TIME_LIMIT` seconds even if the guest hangs, and uses the process's `SIGALRM`.
///
/// # Errors
/// KVM is absent, lacks a capability, or does not run the loop to its end.
pub fn measure() -> Result<Measurement, ProbeError> {
    let kvm = kvm::check(kvm::open_device()?, 1)?;
    let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).ok_or(ProbeError::Memory)?;
    memory.write_slice(&timing_loop_code(TURNS), GuestAddress(0)).map_err(|_| ProbeError::Memory)?;
    let vm = create_vm(&kvm, &memory)?;
    let mut vcpu = vm.create_vcpu(0).map_err(ProbeError::Create)?;
    interrupt_on_alarm()?;
    alarm::set(TIME_LIMIT);
    let guest = shortest(|| run(&mut vcpu));
    alarm::cancel();
    let host = shortest(|| Ok(time_of(|| run_timing_loop(TURNS))))?;
    Ok(Measurement { guest: guest?, host, tsc_deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer) })
}

/// Creates a virtual machine without interrupt controllers, so that `hlt` causes an exit.
fn create_vm(kvm: &Kvm, memory: &Memory) -> Result<VmFd, ProbeError> {
    let vm = kvm.create_vm().map_err(ProbeError::Create)?;
    let region = memory.iter().next().ok_or(ProbeError::Memory)?;
    let range = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: region.len(),
        userspace_addr: region.host_address() as u64,
    };
    // SAFETY: the range is a mapping of that length, and the caller keeps it until the machine is destroyed.
    unsafe { vm.set_user_memory_region(range) }.map_err(ProbeError::Create)?;
    let address = usize::try_from(layout::KVM_TSS).map_err(|_| ProbeError::Memory)?;
    vm.set_tss_address(address).map_err(ProbeError::Create)?;
    Ok(vm)
}

fn run(vcpu: &mut VcpuFd) -> Result<Duration, ProbeError> {
    set_up_boot_vcpu(vcpu, GuestAddress(0))?;
    let begin = Instant::now();
    let exit = vcpu.run();
    let time = begin.elapsed();
    match exit {
        Ok(VcpuExit::Hlt) => Ok(time),
        Ok(exit) => Err(ProbeError::Stopped(format!("{exit:?}"))),
        Err(error) if error.errno() == nix::libc::EINTR => Err(ProbeError::TimeLimit),
        Err(error) => Err(ProbeError::Run(error)),
    }
}

fn time_of(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

fn shortest(mut measure: impl FnMut() -> Result<Duration, ProbeError>) -> Result<Duration, ProbeError> {
    let mut shortest = measure()?;
    for _ in 1..RUNS {
        shortest = shortest.min(measure()?);
    }
    Ok(shortest)
}

/// Makes `SIGALRM` interrupt system calls without any other effect.
fn interrupt_on_alarm() -> Result<(), ProbeError> {
    extern "C" fn ignore(_: nix::libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is async-signal-safe.
    unsafe { sigaction(Signal::SIGALRM, &action) }.map(drop).map_err(ProbeError::Alarm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(guest: u64, host: u64) -> Measurement {
        let [guest, host] = [guest, host].map(Duration::from_micros);
        Measurement { guest, host, tsc_deadline_timer: true }
    }

    #[test]
    fn an_interpreter_is_not_usable() {
        assert!(measured(75, 70).is_usable());
        assert!(measured(1_200, 900).is_usable());
        assert!(!measured(220_000, 70).is_usable());
        assert!(!measured(220_000, 0).is_usable());
    }

    #[test]
    fn guest_and_host_run_the_same_loop() {
        assert_eq!(timing_loop_code(0x0102_0304), [0xb9, 4, 3, 2, 1, 0x49, 0x75, 0xfd, 0xf4]);
        let short = time_of(|| run_timing_loop(1));
        let long = time_of(|| run_timing_loop(50_000_000));
        assert!(long > short, "{long:?} is not longer than {short:?}");
    }
}
