//! vCPUs: a thread each, which runs the guest and serves its exits.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::bus::{MmioBus, PortWrite, Ports};
use super::exit::{ExitSender, MachineExit, VcpuError};
use crate::serial::LastWords;

/// Stack of the machine's threads, in bytes: less than a huge page, with which Linux would back the usual 2 MiB as a
/// whole. All the same, because the C library gives the stack of a thread that ended to the next.
pub(super) const STACK: usize = 256 << 10;

thread_local! {
    /// Where the signal handler asks this thread's vCPU to leave `KVM_RUN`; null where no vCPU runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// What all vCPUs of a machine share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) mmio: MmioBus,
    pub(super) ports: Arc<Ports>,
    pub(super) exit: Arc<ExitSender>,
    /// Set before the vCPUs are kicked to stop them.
    pub(super) stop: Arc<AtomicBool>,
}

/// A vCPU that does not run yet.
pub(super) struct Vcpu {
    pub(super) id: u8,
    pub(super) fd: VcpuFd,
    pub(super) shared: Shared,
}

/// What becomes of a vCPU after an exit.
enum Next {
    Run,
    End(MachineExit),
}

impl Vcpu {
    /// Runs it on a thread of its own.
    pub(super) fn spawn(self) -> io::Result<JoinHandle<()>> {
        install_kick_handler();
        let thread = std::thread::Builder::new().name(format!("vcpu{}", self.id)).stack_size(STACK);
        thread.spawn(move || self.run())
    }

    /// Runs until the machine ends or is stopped.
    fn run(mut self) {
        let kick = KickTarget::new(&mut self.fd);
        while !self.shared.stop.load(Ordering::SeqCst) {
            if let Next::End(exit) = self.run_once() {
                self.shared.exit.tell(exit);
                break;
            }
        }
        drop(kick);
    }

    /// Runs until the next exit and serves it.
    fn run_once(&mut self) -> Next {
        let shared = &self.shared;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) => return self.interrupted(error),
        };
        match exit {
            // Devices are read without an exit: nothing answers here.
            VcpuExit::MmioRead(_, data) => data.fill(0xff),
            VcpuExit::MmioWrite(address, data) => shared.mmio.write(address, data),
            VcpuExit::IoIn(port, data) => shared.ports.read(port, data),
            VcpuExit::IoOut(port, data) => {
                if shared.ports.write(port, data) == PortWrite::Reset {
                    return Next::End(shared.reset());
                }
            }
            VcpuExit::Intr => {}
            VcpuExit::Shutdown => return Next::End(shared.reset()),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET, _) => {
                return Next::End(shared.reset());
            }
            VcpuExit::SystemEvent(event, _) => return self.fail(VcpuError::SystemEvent(event)),
            VcpuExit::FailEntry(reason, cpu) => return self.fail(VcpuError::FailEntry { reason, cpu }),
            VcpuExit::InternalError => return self.internal_error(),
            other => {
                let error = VcpuError::Unknown(format!("{other:?}"));
                return self.fail(error);
            }
        }
        Next::Run
    }

    /// A signal is a reason to look whether the machine was stopped; a vCPU that the guest has not started yet answers
    /// `EAGAIN` when it was woken.
    fn interrupted(&mut self, error: kvm_ioctls::Error) -> Next {
        if !matches!(error.errno(), libc::EINTR | libc::EAGAIN) {
            return self.fail(VcpuError::Run(error));
        }
        self.fd.set_kvm_immediate_exit(0);
        Next::Run
    }

    fn internal_error(&mut self) -> Next {
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        // SAFETY: KVM filled in `internal`, as the exit reason says.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let count = usize::try_from(internal.ndata).unwrap_or(usize::MAX).min(internal.data.len());
        let data = internal.data[..count].to_vec();
        let suberror = internal.suberror;
        self.fail(VcpuError::Internal { kind: suberror_name(suberror), suberror, rip, data })
    }

    fn fail(&self, source: VcpuError) -> Next {
        Next::End(MachineExit::Vcpu { id: self.id, source })
    }
}

impl Shared {
    /// Linux resets the processor when it powers off, and when it panicked, after it said so.
    fn reset(&self) -> MachineExit {
        self.ports.with_console(|console| match console.last_words() {
            Some(LastWords::Panic(message)) => {
                tracing::error!("the guest's last messages:\n{}", console.tail());
                MachineExit::Panic(message.clone())
            }
            Some(LastWords::Agent(message)) => MachineExit::Agent(message.clone()),
            None => MachineExit::Reset,
        })
    }
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "it cannot interpret an instruction",
        KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the processor left the guest for an unknown reason",
        _ => "unknown",
    }
}

/// Makes `vcpu` leave `KVM_RUN` soon, or not enter it. What should be seen then has to be set before.
pub(super) fn kick(vcpu: &JoinHandle<()>) {
    if let Err(error) = vcpu.kill(SIGRTMIN()) {
        tracing::error!(%error, "cannot signal a vCPU thread");
    }
}

/// While it lives, the signal handler on this thread reaches this thread's vCPU.
struct KickTarget;

impl KickTarget {
    fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}

/// Runs on the vCPU's own thread. A kick before `KVM_RUN` makes it return at once, one during it interrupts it: none is
/// lost.
extern "C" fn on_kick(_signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer leads into the vCPU's `kvm_run` mapping, which outlives the `KickTarget` that set it on
        // this thread; the kernel reads the byte, nobody else holds a reference to it across `KVM_RUN`.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::SeqCst);
    }
}

fn install_kick_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| register_signal_handler(SIGRTMIN(), on_kick).expect("SIGRTMIN takes a handler"));
}
