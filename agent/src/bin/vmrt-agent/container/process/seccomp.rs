//! A container's system call filter, which the runtime compiles.

use agent::SeccompFilter;

use crate::error::Error;
use crate::sys::seccomp;

/// A filter to install.
#[derive(Debug)]
pub(crate) struct Filter {
    flags: u32,
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// Converts a filter of the protocol. The kernel checks its instructions.
    pub(crate) fn new(filter: &SeccompFilter) -> Result<Self, Error> {
        if filter.program.is_empty() || filter.program.len() > usize::from(u16::MAX) {
            return Err(Error::invalid("linux.seccomp", format!("a program of {} instructions", filter.program.len())));
        }
        Ok(Self { flags: filter.flags, program: filter.program.iter().copied().map(instruction).collect() })
    }

    /// Installs the filter for the caller and the programs that it executes.
    pub(crate) fn install(&self) -> Result<(), Error> {
        seccomp::install_filter(self.flags, &self.program).map_err(Error::at("install the seccomp filter"))
    }
}

fn instruction(number: u64) -> libc::sock_filter {
    let [c0, c1, jt, jf, k @ ..] = number.to_be_bytes();
    libc::sock_filter { code: u16::from_be_bytes([c0, c1]), jt, jf, k: u32::from_be_bytes(k) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_converted() {
        let taken = instruction(0x0015_0203_c000_003e);
        assert_eq!((taken.code, taken.jt, taken.jf, taken.k), (0x15, 2, 3, 0xc000_003e));
    }

    #[test]
    fn a_program_without_instructions_is_refused() {
        assert!(Filter::new(&SeccompFilter { flags: 0, program: vec![] }).is_err());
    }
}
