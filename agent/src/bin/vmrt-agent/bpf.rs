//! BPF programs that decide about the use of devices: instructions, and handing a program to the kernel.

use std::ffi::c_int;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io::Errno;

use crate::sys::{Result, check, owned};

/// One instruction of a BPF program: the kernel's `struct bpf_insn`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u8,
    /// Destination register in the low half, source register in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(code: u32, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        let [code, ..] = code.to_le_bytes();
        Self { code, registers: destination | source << 4, offset, immediate }
    }

    /// Loads 32 bits from memory at a register.
    pub(crate) const fn load(to: u8, from: u8, offset: i16) -> Self {
        Self::new(libc::BPF_LDX | libc::BPF_MEM | libc::BPF_W, to, from, offset, 0)
    }

    /// Copies a register.
    pub(crate) const fn copy(to: u8, from: u8) -> Self {
        Self::new(BPF_ALU64 | BPF_MOV | libc::BPF_X, to, from, 0, 0)
    }

    /// Sets a register.
    pub(crate) const fn set(to: u8, value: i32) -> Self {
        Self::new(BPF_ALU64 | BPF_MOV | libc::BPF_K, to, 0, 0, value)
    }

    /// Clears the bits of a register that `mask`, sign-extended, does not have.
    pub(crate) const fn and(to: u8, mask: i32) -> Self {
        Self::new(BPF_ALU64 | libc::BPF_AND | libc::BPF_K, to, 0, 0, mask)
    }

    /// Shifts a register.
    pub(crate) const fn shift_right(to: u8, bits: i32) -> Self {
        Self::new(BPF_ALU64 | libc::BPF_RSH | libc::BPF_K, to, 0, 0, bits)
    }

    /// Leaves out the next `skip` instructions if the register has this value.
    pub(crate) const fn jump_if(register: u8, value: i32, skip: i16) -> Self {
        Self::new(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, register, 0, skip, value)
    }

    /// Leaves out the next `skip` instructions if the register has another value.
    pub(crate) const fn jump_if_not(register: u8, value: i32, skip: i16) -> Self {
        Self::new(libc::BPF_JMP | BPF_JNE | libc::BPF_K, register, 0, skip, value)
    }

    /// Ends the program; register 0 is its result.
    pub(crate) const fn exit() -> Self {
        Self::new(libc::BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
    }
}

/// Codes of the extended instruction set that the C library does not name.
const BPF_ALU64: u32 = 0x07;
const BPF_MOV: u32 = 0xb0;
const BPF_JNE: u32 = 0x50;
const BPF_EXIT: u32 = 0x90;

/// What `bpf(2)` is told to load a program: the beginning of the kernel's `union bpf_attr`.
#[repr(C)]
struct LoadProgram {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    reserved: [u64; 3],
}

/// What `bpf(2)` is told to attach one.
#[repr(C)]
struct AttachProgram {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Lets `program` decide about every use of a device by the processes of `cgroup`.
pub(crate) fn attach_device_program(program: &[Instruction], cgroup: BorrowedFd<'_>) -> Result<()> {
    const LOAD: c_int = 5;
    const ATTACH: c_int = 8;
    const PROGRAM_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    let load = LoadProgram {
        kind: PROGRAM_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        reserved: [0; 3],
    };
    // SAFETY: `load` is a valid attribute of the length given; program and license outlive the call.
    let loaded = check(unsafe { libc::syscall(libc::SYS_bpf, LOAD, &raw const load, size_of::<LoadProgram>()) })?;
    let loaded = owned(c_int::try_from(loaded).map_err(|_| Errno::BADF)?)?;
    let number = |fd: RawFd| u32::try_from(fd).map_err(|_| Errno::BADF);
    let attach = AttachProgram {
        target: number(cgroup.as_raw_fd())?,
        program: number(loaded.as_raw_fd())?,
        kind: ATTACH_CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: `attach` is a valid attribute of the length given; it names two descriptors that are open.
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
