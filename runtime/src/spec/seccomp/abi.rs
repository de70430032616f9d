//! The calling conventions of programs in the guest, and the numbers of system calls in each.

use oci_spec::runtime::Arch;
use syscalls::{x86, x86_64};

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386`: the architecture of a call, as a filter sees it.
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_X86: u32 = 0x4000_0003;

/// The bit that is set in numbers of x32. Calls of x32 and x86-64 have the same architecture for a filter.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// A calling convention.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Abi {
    X86_64,
    X32,
    X86,
}

/// The system calls that `socketcall` of x86 multiplexes. Its first argument is the index in this list plus one.
const SOCKET_CALLS: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];
/// The system calls that `ipc` of x86 multiplexes, and the first argument for each.
const IPC_CALLS: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// First of the numbers that only x32 has. It has them for the system calls below, whose arguments differ from those of x86-64.
const X32_FIRST: u32 = 512;
const X32_CALLS: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

impl Abi {
    /// The calling convention of an architecture. `None` if no program in the guest can use it.
    pub(super) fn of(arch: Arch) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative | Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchX86 => Some(Self::X86),
            _ => None,
        }
    }

    /// The architecture as a filter sees it: `AUDIT_ARCH_*`.
    pub(super) fn audit_arch(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => AUDIT_X86_64,
            Self::X86 => AUDIT_X86,
        }
    }

    /// Whether arguments have 64 bits. Otherwise only the lower 32 bits are used.
    pub(super) fn has_64_bit_arguments(self) -> bool {
        self == Self::X86_64
    }

    /// The number of a system call, if the convention has it.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        match self {
            Self::X86_64 => x86_64_number(name),
            Self::X32 => x32_number(name).map(|number| number | X32_BIT),
            Self::X86 => name.parse::<x86::Sysno>().ok().and_then(|call| u32::try_from(call.id()).ok()),
        }
    }

    /// The multiplexing system call that can do the same as the call `name`: its number, and its first argument for that. `None` if there
    /// is none.
    pub(super) fn multiplexed(self, name: &str) -> Option<(u32, u64)> {
        if self != Self::X86 {
            return None;
        }
        if let Some(index) = SOCKET_CALLS.iter().position(|call| *call == name) {
            return Some((self.number("socketcall")?, index as u64 + 1));
        }
        let (_, argument) = IPC_CALLS.iter().find(|(call, _)| *call == name)?;
        Some((self.number("ipc")?, *argument))
    }
}

fn x86_64_number(name: &str) -> Option<u32> {
    name.parse::<x86_64::Sysno>().ok().and_then(|call| u32::try_from(call.id()).ok())
}

fn x32_number(name: &str) -> Option<u32> {
    let x32_only = (X32_FIRST..).zip(X32_CALLS).find(|(_, call)| *call == name);
    x32_only.map(|(number, _)| number).or_else(|| x86_64_number(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_convention_has_its_numbers() {
        let numbers = |name| [Abi::X86_64, Abi::X32, Abi::X86].map(|abi| abi.number(name));
        assert_eq!(numbers("write"), [Some(1), Some(X32_BIT | 1), Some(4)]);
        assert_eq!(numbers("pwritev2"), [Some(328), Some(X32_BIT | 547), Some(379)]);
        assert_eq!(numbers("socketcall"), [None, None, Some(102)]);
        assert_eq!(numbers("no_such_call"), [None; 3]);
    }

    #[test]
    fn x86_multiplexes_socket_and_ipc_calls() {
        assert_eq!(Abi::X86.multiplexed("sendmmsg"), Some((102, 20)));
        assert_eq!(Abi::X86.multiplexed("shmctl"), Some((117, 24)));
        assert_eq!(Abi::X86.multiplexed("write"), None);
        assert_eq!(Abi::X86_64.multiplexed("socket"), None);
    }
}
