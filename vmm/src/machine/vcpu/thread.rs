//! The thread of a vCPU.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::STACK_SIZE;
use super::kick::KickTarget;
use crate::jail::seccomp::{self, ThreadClass};
use crate::machine::bus::{FatalMessage, IoPorts, MmioBus, PortWrite};
use crate::machine::exit::{ExitSender, MachineExit, VcpuError};

/// Most lines of the guest's messages that are logged: as many as a place in the code may log at once.
const LAST_LINES: usize = 50;

/// The parts of a machine that its vCPUs share.
#[derive(Clone)]
pub(in crate::machine) struct VcpuContext {
    pub(in crate::machine) mmio: MmioBus,
    pub(in crate::machine) ports: Arc<IoPorts>,
    pub(in crate::machine) exit: Arc<ExitSender>,
    /// Set before the vCPUs are kicked, to stop them.
    pub(in crate::machine) stop: Arc<AtomicBool>,
}

/// A vCPU that does not run yet.
pub(in crate::machine) struct Vcpu {
    pub(in crate::machine) id: u8,
    pub(in crate::machine) fd: VcpuFd,
    pub(super) context: VcpuContext,
    /// Whether the vCPU goes on where a saved one stopped. Its devices are activated first.
    pub(in crate::machine) is_restored: bool,
}

/// What a vCPU does after an exit.
enum Next {
    Run,
    End(MachineExit),
}

impl Vcpu {
    /// Runs the vCPU on a new thread.
    pub(super) fn spawn(self) -> io::Result<JoinHandle<Self>> {
        let thread = std::thread::Builder::new().name(format!("vcpu{}", self.id)).stack_size(STACK_SIZE);
        thread.spawn(move || self.run())
    }

    /// Runs until the machine ends or is stopped, and returns the vCPU.
    fn run(mut self) -> Self {
        if let Err(error) = seccomp::confine(ThreadClass::Vcpu) {
            self.context.exit.report(MachineExit::Vcpu { id: self.id, source: VcpuError::Confine(error) });
            return self;
        }
        if self.is_restored {
            self.context.mmio.resume();
        }
        let kick = KickTarget::new(&mut self.fd);
        while !self.context.stop.load(Ordering::SeqCst) {
            if let Next::End(exit) = self.run_once() {
                self.context.exit.report(exit);
                break;
            }
        }
        drop(kick);
        self
    }

    /// Lets KVM complete the instruction of the last exit, without running the guest. The state of the vCPU is complete then.
    pub(in crate::machine) fn complete_exit(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // The result is always EINTR.
        let _ = self.fd.run();
    }

    /// Runs until the next exit and handles it.
    fn run_once(&mut self) -> Next {
        let context = &self.context;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) => return self.handle_run_error(error),
        };
        match exit {
            // The guest reads device registers without an exit, so there is no device at the address.
            VcpuExit::MmioRead(_, data) => data.fill(0xff),
            VcpuExit::MmioWrite(address, data) => context.mmio.write(address, data),
            VcpuExit::IoIn(port, data) => context.ports.read(port, data),
            VcpuExit::IoOut(port, data) => {
                if context.ports.write(port, data) == PortWrite::Reset {
                    return Next::End(context.reset_reason());
                }
            }
            VcpuExit::Intr => {}
            VcpuExit::Shutdown => return Next::End(context.reset_reason()),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET, _) => {
                return Next::End(context.reset_reason());
            }
            VcpuExit::SystemEvent(event, _) => return self.fail(VcpuError::SystemEvent(event)),
            VcpuExit::FailEntry(reason, cpu) => return self.fail(VcpuError::FailEntry { reason, cpu }),
            VcpuExit::InternalError => return self.fail_with_internal_error(),
            other => {
                let error = VcpuError::Unknown(format!("{other:?}"));
                return self.fail(error);
            }
        }
        Next::Run
    }

    /// `EINTR` follows a signal, after which the caller checks whether the machine was stopped. `EAGAIN` follows a wake-up of
    /// a vCPU that the guest has not started.
    fn handle_run_error(&mut self, error: kvm_ioctls::Error) -> Next {
        if !matches!(error.errno(), libc::EINTR | libc::EAGAIN) {
            return self.fail(VcpuError::Run(error));
        }
        self.fd.set_kvm_immediate_exit(0);
        Next::Run
    }

    fn fail_with_internal_error(&mut self) -> Next {
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        // SAFETY: `internal` is the union's valid field, because the exit reason is KVM_EXIT_INTERNAL_ERROR.
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

impl VcpuContext {
    /// Why the guest reset its processor. Linux does so to power off, and after a panic, which it prints before.
    fn reset_reason(&self) -> MachineExit {
        self.ports.with_console(|console| match console.fatal_message() {
            Some(FatalMessage::Panic(message)) => {
                log_last_lines(&console.tail());
                MachineExit::Panic(message.clone())
            }
            Some(FatalMessage::Agent(message)) => MachineExit::Agent(message.clone()),
            None => MachineExit::Reset,
        })
    }
}

/// Logs the last lines that the guest printed. Not as errors: the runtime reports the last error, which is vmrt's own.
fn log_last_lines(text: &str) {
    let lines: Vec<_> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
        tracing::warn!("guest: {line}");
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
