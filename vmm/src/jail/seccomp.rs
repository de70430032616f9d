//! The system calls that each class of threads may make (`seccomp(2)`).
//!
//! The policies are in `vmm/seccomp/`, one file a class, and are compiled by `vmm/build.rs`. Any other call ends the process, and the
//! log says which. `clone3` fails with `ENOSYS`, so that the C library uses `clone`.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

use seccompiler::{BpfProgram, sock_filter};
use syscalls::Sysno;
use vmm_sys_util::signal::register_signal_handler;

use super::last_line::LastLine;

/// The process id in the policies. [`arm`] replaces it.
const PROCESS_ID: u32 = 0x7fff_fff1;

/// Exit status of a process that made a forbidden call: that of one that `SIGSYS` ended.
const EXIT_STATUS: i32 = 128 + libc::SIGSYS;

/// A class of threads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ThreadClass {
    /// The thread that serves the control socket and the devices that never block. It also adds vCPUs.
    EventLoop,
    /// A thread that serves files.
    FileServer,
    /// The thread that connects to sockets of the host.
    HostSockets,
    /// The thread that saves a machine as a template.
    TemplateSaver,
    /// A thread that runs a vCPU.
    Vcpu,
}

impl ThreadClass {
    const ALL: [Self; 5] = [Self::EventLoop, Self::FileServer, Self::HostSockets, Self::TemplateSaver, Self::Vcpu];

    /// The compiled policy: instructions of 8 bytes.
    fn policy(self) -> &'static [u8] {
        match self {
            Self::EventLoop => include_bytes!(concat!(env!("OUT_DIR"), "/event-loop.bpf")),
            Self::FileServer => include_bytes!(concat!(env!("OUT_DIR"), "/file-server.bpf")),
            Self::HostSockets => include_bytes!(concat!(env!("OUT_DIR"), "/host-sockets.bpf")),
            Self::TemplateSaver => include_bytes!(concat!(env!("OUT_DIR"), "/template-saver.bpf")),
            Self::Vcpu => include_bytes!(concat!(env!("OUT_DIR"), "/vcpu.bpf")),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::EventLoop => "event loop",
            Self::FileServer => "file server",
            Self::HostSockets => "host sockets",
            Self::TemplateSaver => "template saver",
            Self::Vcpu => "vCPU",
        }
    }
}

/// The filters of this process, in the order of [`ThreadClass::ALL`].
static FILTERS: OnceLock<[BpfProgram; 5]> = OnceLock::new();

thread_local! {
    /// The class of this thread, for the signal handler.
    static CLASS: Cell<&'static str> = const { Cell::new("unconfined") };
}

/// Number of heaps of the allocator. With more than one, it reads files of procfs and sysfs: to count the CPUs before it makes a heap,
/// and for the host's overcommit policy before it shrinks one.
const HEAPS: libc::c_int = 1;

/// Prepares the filters for this process. Without this call, [`confine`] does nothing.
///
/// # Errors
/// The signal handler cannot be installed.
pub(super) fn arm() -> io::Result<()> {
    // SAFETY: the call sets a number of the C library's allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
    register_signal_handler(libc::SIGSYS, on_forbidden_call)?;
    let process = std::process::id();
    // A second call keeps the same filters.
    let _ = FILTERS.set(ThreadClass::ALL.map(|class| parse(class.policy(), process)));
    Ok(())
}

/// Confines the calling thread, and those that it starts later, to the calls of its class. A filter that it has already applies as
/// well.
///
/// # Errors
/// The kernel refuses the filter.
pub fn confine(class: ThreadClass) -> io::Result<()> {
    let Some(filters) = FILTERS.get() else { return Ok(()) };
    CLASS.set(class.name());
    let filter = ThreadClass::ALL.iter().zip(filters).find(|(other, _)| **other == class);
    filter.map_or(Ok(()), |(_, filter)| seccompiler::apply_filter(filter).map_err(io::Error::other))?;
    #[cfg(feature = "takeover")]
    super::takeover::reach(super::takeover::Point::Confined(class));
    Ok(())
}

fn parse(policy: &[u8], process: u32) -> BpfProgram {
    policy.chunks_exact(8).map(|instruction| parse_instruction(instruction, process)).collect()
}

fn parse_instruction(bytes: &[u8], process: u32) -> sock_filter {
    let [c0, c1, jt, jf, k0, k1, k2, k3] = *bytes else { unreachable!("chunks of 8 bytes") };
    let k = u32::from_ne_bytes([k0, k1, k2, k3]);
    let k = if k == PROCESS_ID { process } else { k };
    sock_filter { code: u16::from_ne_bytes([c0, c1]), jt, jf, k }
}

/// Writes which call was refused to the log, and ends the process.
extern "C" fn on_forbidden_call(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`. For SIGSYS, the number of the call is the `int` at byte 24, which is in it.
    let number = unsafe { info.cast::<u8>().add(24).cast::<libc::c_int>().read_unaligned() };
    let mut line = LastLine::new("the jail ended the VMM");
    line.add(" made system call ");
    line.add_number(number.unsigned_abs());
    line.add(" (");
    line.add(usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name()));
    line.add(")");
    line.end_process(EXIT_STATUS)
}

/// The name of the calling thread's class.
pub(super) fn class_name() -> &'static str {
    CLASS.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_hold_this_process() {
        for class in ThreadClass::ALL {
            let filter = parse(class.policy(), 42);
            assert!(filter.len() > 20 && filter.iter().all(|instruction| instruction.k != PROCESS_ID));
            assert!(filter.iter().any(|instruction| instruction.k == 42), "{class:?}");
        }
    }
}
