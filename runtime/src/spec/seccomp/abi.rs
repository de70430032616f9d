//! The calling conventions a guest's programs can have, and the numbers that system calls have in them.

use oci_spec::runtime::Arch;
use syscalls::{x86, x86_64};

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386`: what the kernel tells a filter of a call's convention.
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_X86: u32 = 0x4000_0003;

/// The bit that tells x32's numbers from x86-64's, which share what the kernel tells of their convention.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// A calling convention.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Abi {
    X86_64,
    X32,
    X86,
}

/// What the kernel's `socketcall` and `ipc` of x86 do, by their first argument.
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

/// System calls whose arguments differ so much in x32 that they have numbers of their own there, which begin here.
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
    /// The one a specification means; none where no program in the guest can have it.
    pub(super) fn of(arch: Arch) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative | Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchX86 => Some(Self::X86),
            _ => None,
        }
    }

    /// What the kernel calls it.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => AUDIT_X86_64,
            Self::X86 => AUDIT_X86,
        }
    }

    /// Whether arguments are 64 bits wide; otherwise only their lower half counts.
    pub(super) fn is_wide(self) -> bool {
        self == Self::X86_64
    }

    /// Number of a system call, if it exists there.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        match self {
            Self::X86_64 => x86_64_number(name),
            Self::X32 => x32_number(name).map(|number| number | X32_BIT),
            Self::X86 => name.parse::<x86::Sysno>().ok().and_then(|call| u32::try_from(call.id()).ok()),
        }
    }

    /// The other way there is to a system call: the number of one that does several, and the first argument that
    /// chooses it.
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
    let own = (X32_FIRST..).zip(X32_CALLS).find(|(_, call)| *call == name);
    own.map(|(number, _)| number).or_else(|| x86_64_number(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_convention() {
        let numbers = |name| [Abi::X86_64, Abi::X32, Abi::X86].map(|abi| abi.number(name));
        assert_eq!(numbers("write"), [Some(1), Some(X32_BIT | 1), Some(4)]);
        assert_eq!(numbers("pwritev2"), [Some(328), Some(X32_BIT | 547), Some(379)]);
        assert_eq!(numbers("socketcall"), [None, None, Some(102)]);
        assert_eq!(numbers("no_such_call"), [None; 3]);
    }

    #[test]
    fn some_calls_have_a_second_way_on_x86() {
        assert_eq!(Abi::X86.multiplexed("sendmmsg"), Some((102, 20)));
        assert_eq!(Abi::X86.multiplexed("shmctl"), Some((117, 24)));
        assert_eq!(Abi::X86.multiplexed("write"), None);
        assert_eq!(Abi::X86_64.multiplexed("socket"), None);
    }
}
