//! The targets of fuzzing. Each takes any bytes, and panics only if the code has a defect.
//!
//! `fuzz/` at the top of the source tree runs them, and has an input for each that reaches much of the code. The unit test runs each over
//! these inputs.

mod devices;

pub use devices::{device_states, mmio};

use crate::virtio;

/// Requests of a guest to the file server, over a temporary directory.
pub fn fuse(data: &[u8]) {
    crate::fs::fuzz::requests(data);
}

/// A virtqueue of any content, and each device's conversion of its chains.
pub fn chains(data: &[u8]) {
    virtio::fuzz::chains(data, &[crate::fs::fuzz::chain, crate::net::fuzz::chain, crate::vsock::fuzz::packet]);
}

/// Packets and chains of a guest to the vsock device, and events of the host's descriptors.
pub fn vsock(data: &[u8]) {
    crate::vsock::fuzz::vsock(data);
}

/// Frames and chains of both sides of the network device.
pub fn net(data: &[u8]) {
    crate::net::fuzz::net(data);
}

/// Requests of a guest to the memory device, and of the sandbox.
pub fn mem(data: &[u8]) {
    crate::mem::fuzz::mem(data);
}

/// Messages of the agent, as the VMM reads them.
pub fn agent_messages(data: &[u8]) {
    crate::sandbox::agent_connection::fuzz::agent_messages(data);
}

/// Frames on a control connection, as both of its ends read them.
pub fn control(data: &[u8]) {
    crate::control::fuzz::control(data);
}

/// A saved state of the file server, and requests to the restored one.
pub fn fs_state(data: &[u8]) {
    crate::fs::fuzz::state(data);
}

#[cfg(test)]
mod tests {
    use agent::fuzz::run_corpus;

    use super::*;

    #[test]
    fn the_committed_inputs_find_no_defect() {
        run_corpus("fuse", fuse);
        run_corpus("chains", chains);
        run_corpus("vsock", vsock);
        run_corpus("net", net);
        run_corpus("mem", mem);
        run_corpus("mmio", mmio);
        run_corpus("agent_messages", agent_messages);
        run_corpus("control", control);
        run_corpus("device_states", device_states);
        run_corpus("fs_state", fs_state);
    }
}
