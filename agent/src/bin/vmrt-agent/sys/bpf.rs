//! BPF programs of cgroups: instructions, loading and attaching.

use std::ffi::c_int;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io::Errno;

use super::{Result, check, owned};

/// One instruction of a BPF program: the kernel's `struct bpf_insn`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u8,
    /// Destination register in the lower half, source register in the upper half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(code: u32, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        let [code, ..] = code.to_le_bytes();
        Self { code, registers: destination | source << 4, offset, immediate }
    }

    /// Loads 32 bits from memory at address `from` plus `offset`.
    pub(crate) const fn load(to: u8, from: u8, offset: i16) -> Self {
        Self::new(libc::BPF_LDX | libc::BPF_MEM | libc::BPF_W, to, from, offset, 0)
    }

    /// Stores 32 bits of `from` in memory at address `to` plus `offset`.
    pub(crate) const fn store(to: u8, offset: i16, from: u8) -> Self {
        Self::new(BPF_STX | libc::BPF_MEM | libc::BPF_W, to, from, offset, 0)
    }

    /// Copies a register.
    pub(crate) const fn copy(to: u8, from: u8) -> Self {
        Self::new(BPF_ALU64 | BPF_MOV | libc::BPF_X, to, from, 0, 0)
    }

    /// Sets a register.
    pub(crate) const fn set(to: u8, value: i32) -> Self {
        Self::new(BPF_ALU64 | BPF_MOV | libc::BPF_K, to, 0, 0, value)
    }

    /// Clears the bits of a register that are not set in the sign-extended `mask`.
    pub(crate) const fn and(to: u8, mask: i32) -> Self {
        Self::new(BPF_ALU64 | libc::BPF_AND | libc::BPF_K, to, 0, 0, mask)
    }

    /// Shifts a register to the right.
    pub(crate) const fn shift_right(to: u8, bits: i32) -> Self {
        Self::new(BPF_ALU64 | libc::BPF_RSH | libc::BPF_K, to, 0, 0, bits)
    }

    /// Skips the next `skip` instructions if the register has this value.
    pub(crate) const fn jump_if(register: u8, value: i32, skip: i16) -> Self {
        Self::new(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, register, 0, skip, value)
    }

    /// Skips the next `skip` instructions if the register has another value.
    pub(crate) const fn jump_if_not(register: u8, value: i32, skip: i16) -> Self {
        Self::new(libc::BPF_JMP | BPF_JNE | libc::BPF_K, register, 0, skip, value)
    }

    /// Ends the program. The result is in register 0.
    pub(crate) const fn exit() -> Self {
        Self::new(libc::BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
    }
}

/// Operation codes of the extended instruction set that the C library does not define.
const BPF_ALU64: u32 = 0x07;
const BPF_MOV: u32 = 0xb0;
const BPF_JNE: u32 = 0x50;
const BPF_EXIT: u32 = 0x90;
const BPF_STX: u32 = 0x03;

/// The event that a program decides about: the kernel's `BPF_PROG_TYPE_*` and `BPF_CGROUP_*`, and the `BPF_F_*` flags
/// of the attachment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    program: u32,
    attachment: u32,
    flags: u32,
}

impl Hook {
    /// Access to a device.
    pub(crate) const DEVICE: Self = Self { program: 15, attachment: 6, flags: 0 };
    /// The address that a socket connects to.
    pub(crate) const CONNECT4: Self = Self::address(10);
    /// The address that a datagram is sent to.
    pub(crate) const SENDMSG4: Self = Self::address(14);
    /// The sender's address of a received datagram.
    pub(crate) const RECVMSG4: Self = Self::address(19);
    /// The address that `getpeername(2)` returns.
    pub(crate) const GETPEERNAME4: Self = Self::address(29);

    /// With `BPF_F_ALLOW_MULTI`: cgroups below may have programs of their own.
    const fn address(attachment: u32) -> Self {
        Self { program: 18, attachment, flags: 2 }
    }
}

/// Arguments of `BPF_PROG_LOAD`: the beginning of the kernel's `union bpf_attr`.
#[repr(C)]
struct LoadProgram {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    /// The verifier's log, the kernel's version, and the program's flags and name. Unused.
    reserved: [u64; 5],
    interface: u32,
    attachment: u32,
}

/// Arguments of `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachProgram {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Attaches `program` to `cgroup`: it decides for the processes of that cgroup.
pub(crate) fn attach(hook: Hook, program: &[Instruction], cgroup: BorrowedFd<'_>) -> Result<()> {
    const LOAD: c_int = 5;
    const ATTACH: c_int = 8;
    let load = LoadProgram {
        kind: hook.program,
        instruction_count: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        reserved: [0; 5],
        interface: 0,
        attachment: hook.attachment,
    };
    // SAFETY: `load` is a valid attribute of the given length; program and license outlive the call.
    let loaded = check(unsafe { libc::syscall(libc::SYS_bpf, LOAD, &raw const load, size_of::<LoadProgram>()) })?;
    let loaded = owned(c_int::try_from(loaded).map_err(|_| Errno::BADF)?)?;
    let number = |fd: RawFd| u32::try_from(fd).map_err(|_| Errno::BADF);
    let attach = AttachProgram {
        target: number(cgroup.as_raw_fd())?,
        program: number(loaded.as_raw_fd())?,
        kind: hook.attachment,
        flags: hook.flags,
    };
    // SAFETY: `attach` is a valid attribute of the given length and names two open descriptors.
    check(unsafe { libc::syscall(libc::SYS_bpf, ATTACH, &raw const attach, size_of::<AttachProgram>()) })?;
    Ok(())
}

#[cfg(test)]
impl Instruction {
    pub(crate) fn code(self) -> u8 {
        self.code
    }

    pub(crate) fn destination(self) -> u8 {
        self.registers & 0xf
    }

    pub(crate) fn source(self) -> u8 {
        self.registers >> 4
    }

    pub(crate) fn offset(self) -> i16 {
        self.offset
    }

    pub(crate) fn immediate(self) -> i32 {
        self.immediate
    }
}
