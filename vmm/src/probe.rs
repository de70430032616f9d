//! How well this host runs guests: a short loop in supervisor mode, in a machine that is thrown away.
//!
//! Some hosts have a `/dev/kvm` without hardware under it that runs a guest's user mode at full speed and interprets its
//! kernel: everything opens, and nothing boots in reasonable time. Only the clock tells.

use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::alarm;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::{VcpuSetupError, count, counting_code, layout, set_up_boot_vcpu};
use crate::machine::kvm::{self, KvmError};
use crate::virtio::device::Memory;

/// Turns of the loop: a fraction of a millisecond on hardware, a fraction of a second in an interpreter.
pub const TURNS: u32 = 200_000;

/// The loop is run so often, and the shortest time counts.
const RUNS: usize = 3;

/// Seconds after which a guest that does not come to an end is stopped.
const TIME_LIMIT: u32 = 5;

/// How many times slower than the host a guest may be. On hardware the two are equal but for one entry and exit of some
/// microseconds; an interpreter is slower by three orders of magnitude.
const USABLE_RATIO: u128 = 20;

const MEMORY: usize = 4096;

/// Why the loop could not be timed.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// KVM cannot run a machine.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// There is no memory for it.
    #[error("cannot give the test machine memory")]
    Memory,
    /// KVM refused to make it.
    #[error("cannot make the test machine")]
    Make(#[source] kvm_ioctls::Error),
    /// Its processor could not be set up.
    #[error(transparent)]
    SetUp(#[from] VcpuSetupError),
    /// The loop did not end.
    #[error("the test machine did not finish {TURNS} turns of a loop within {TIME_LIMIT} s")]
    TimeLimit,
    /// KVM could not go on.
    #[error("KVM cannot run the test machine")]
    Run(#[source] kvm_ioctls::Error),
    /// It stopped elsewhere than at its end.
    #[error("the test machine stopped with {0}")]
    Stopped(String),
    /// A signal's action could not be set.
    #[error("cannot set a time limit")]
    Alarm(#[source] nix::Error),
}

/// What was measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Measured {
    /// [`TURNS`] turns in a guest's supervisor mode.
    pub guest: Duration,
    /// As many on the host.
    pub host: Duration,
    /// Whether guests have a timer whose interrupts cost no device emulation.
    pub tsc_deadline_timer: bool,
}

impl Measured {
    /// Whether the guest's supervisor mode runs on hardware.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.guest.as_nanos() <= self.host.as_nanos().max(1) * USABLE_RATIO
    }
}

/// Times the loop. Takes less than [`TIME_LIMIT`] seconds whatever KVM does, and uses the process's alarm clock.
///
/// # Errors
/// KVM is absent, lacks something, or does not run the loop to its end.
pub fn measure() -> Result<Measured, ProbeError> {
    let kvm = kvm::open(1)?;
    let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(|_| ProbeError::Memory)?;
    memory.write_slice(&counting_code(TURNS), GuestAddress(0)).map_err(|_| ProbeError::Memory)?;
    let vm = make_vm(&kvm, &memory)?;
    let mut vcpu = vm.create_vcpu(0).map_err(ProbeError::Make)?;
    interrupt_on_alarm()?;
    alarm::set(TIME_LIMIT);
    let guest = shortest(|| run(&mut vcpu));
    alarm::cancel();
    let host = shortest(|| Ok(time(|| count(TURNS))))?;
    Ok(Measured { guest: guest?, host, tsc_deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer) })
}

/// Without interrupt controllers, so that `hlt` ends the run.
fn make_vm(kvm: &Kvm, memory: &Memory) -> Result<VmFd, ProbeError> {
    let vm = kvm.create_vm().map_err(ProbeError::Make)?;
    let region = memory.iter().next().ok_or(ProbeError::Memory)?;
    let range = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the range is a mapping of that length, and the caller keeps it until the machine is gone.
    unsafe { vm.set_user_memory_region(range) }.map_err(ProbeError::Make)?;
    let address = usize::try_from(layout::KVM_TSS).map_err(|_| ProbeError::Memory)?;
    vm.set_tss_address(address).map_err(ProbeError::Make)?;
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

fn time(work: impl FnOnce()) -> Duration {
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

/// Makes the alarm interrupt system calls, and do nothing else.
fn interrupt_on_alarm() -> Result<(), ProbeError> {
    extern "C" fn nothing(_: nix::libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it may interrupt anything.
    unsafe { sigaction(Signal::SIGALRM, &action) }.map(drop).map_err(ProbeError::Alarm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(guest: u64, host: u64) -> Measured {
        let [guest, host] = [guest, host].map(Duration::from_micros);
        Measured { guest, host, tsc_deadline_timer: true }
    }

    #[test]
    fn hardware_and_interpreters_are_told_apart() {
        assert!(measured(75, 70).is_usable());
        assert!(measured(1_200, 900).is_usable());
        assert!(!measured(220_000, 70).is_usable());
        assert!(!measured(220_000, 0).is_usable());
    }

    #[test]
    fn the_guests_loop_is_the_hosts() {
        assert_eq!(counting_code(0x0102_0304), [0xb9, 4, 3, 2, 1, 0x49, 0x75, 0xfd, 0xf4]);
        let short = time(|| count(1));
        let long = time(|| count(50_000_000));
        assert!(long > short, "{long:?} is not more than {short:?}");
    }
}
