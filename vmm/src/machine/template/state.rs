//! The state of a machine.

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use crate::arch::{VcpuState, VmState};
use crate::fs::FsState;
use crate::mem::MemState;
use crate::net::NetState;
use crate::virtio::rng::RngState;
use crate::virtio::state::TransportState;
use crate::vsock::VsockState;

/// The state of a machine with one vCPU, without its memory.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// What a machine must have in common with the saved one.
    pub shape: Shape,
    /// Interrupt controllers, timer and clock.
    pub vm: VmState,
    /// The vCPU.
    pub vcpu: VcpuState,
    /// The devices.
    pub devices: DeviceStates,
}

/// What the guest has found out about its machine, and what cannot change afterwards.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Bytes of memory at boot.
    pub memory_size: u64,
    /// Bytes of the region for pluggable memory.
    pub pluggable: u64,
    /// Most vCPUs.
    pub max_vcpus: u8,
    /// Number of network devices.
    pub network_slots: u8,
    /// Number of request queues of the file system device.
    pub request_queues: u16,
    /// CPUID of the first vCPU.
    pub cpuid: Vec<kvm_cpuid_entry2>,
}

impl Shape {
    /// Most bytes of memory that a machine of this kind can have.
    #[must_use]
    pub fn max_memory(&self) -> u64 {
        self.memory_size.saturating_add(self.pluggable)
    }
}

/// The devices' states, in the order of their addresses.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceStates {
    /// The file system device.
    pub fs: TransportState<FsState>,
    /// The socket device.
    pub vsock: TransportState<VsockState>,
    /// The entropy device.
    pub rng: TransportState<RngState>,
    /// The network devices.
    pub net: Vec<TransportState<NetState>>,
    /// The memory device.
    pub mem: TransportState<MemState>,
}
