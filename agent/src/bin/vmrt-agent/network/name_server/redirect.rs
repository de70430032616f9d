//! BPF programs that translate the port of the name server.

use std::os::fd::BorrowedFd;

use agent::NAME_SERVER;

use crate::sys::bpf::{self, Hook, Instruction};

/// Attaches the programs to `cgroup`: its processes reach `port` of the name server as port 53, and see it as port 53.
pub(crate) fn attach(cgroup: BorrowedFd<'_>, port: u16) -> rustix::io::Result<()> {
    const DNS: u16 = 53;
    let (outgoing, incoming) = (replace_port(DNS, port), replace_port(port, DNS));
    bpf::attach(Hook::CONNECT4, &outgoing, cgroup)?;
    bpf::attach(Hook::SENDMSG4, &outgoing, cgroup)?;
    bpf::attach(Hook::RECVMSG4, &incoming, cgroup)?;
    bpf::attach(Hook::GETPEERNAME4, &incoming, cgroup)
}

/// A program that replaces port `from` by port `to` in a socket address with the name server's address.
fn replace_port(from: u16, to: u16) -> [Instruction; 8] {
    const CONTEXT: u8 = 1;
    const VALUE: u8 = 2;
    /// Offsets of the address and the port in the kernel's `struct bpf_sock_addr`; both are in network byte order.
    const ADDRESS: i16 = 4;
    const PORT: i16 = 24;
    let address = i32::from_ne_bytes(NAME_SERVER.octets());
    let big_endian = |port: u16| i32::from(port.to_be());
    [
        Instruction::load(VALUE, CONTEXT, ADDRESS),
        Instruction::jump_if_not(VALUE, address, 4),
        Instruction::load(VALUE, CONTEXT, PORT),
        Instruction::jump_if_not(VALUE, big_endian(from), 2),
        Instruction::set(VALUE, big_endian(to)),
        Instruction::store(CONTEXT, PORT, VALUE),
        // Result 1 lets the system call proceed.
        Instruction::set(0, 1),
        Instruction::exit(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_compares_and_sets_ports_in_network_byte_order() {
        let program = replace_port(53, 0x1234);
        assert_eq!(program[1], Instruction::jump_if_not(2, 0x0b00_007f, 4));
        assert_eq!(program[3], Instruction::jump_if_not(2, 0x3500, 2));
        assert_eq!(program[4], Instruction::set(2, 0x3412));
    }
}
