//! The machine of a sandbox, with its devices in the order of their addresses.

use std::io;

use agent::SHARES_TAG;
use thiserror::Error;

use super::exit::ExitReceiver;
use super::resources::Resources;
use super::vcpu::VcpuSource;
use super::{Machine, MachineBuilder, MachineError};
use crate::event_loop::LoopHandle;
use crate::fs::{FsDevice, FsError, Server};
use crate::mem::{Mem, Resizer};
use crate::net::{self, Net, Slots};
use crate::virtio::rng::Rng;
use crate::vsock::{Ports, Vsock};

/// Most request queues of the file system device. Each has a thread; more do not make a guest faster.
const MAX_REQUEST_QUEUES: u8 = 4;

/// Why a sandbox's machine cannot be built.
#[derive(Debug, Error)]
pub enum AssemblyError {
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The file system device cannot be created.
    #[error("cannot create the file system device")]
    Fs(#[from] FsError),
    /// The vsock device cannot be created.
    #[error("cannot create the vsock device")]
    Vsock(#[source] io::Error),
    /// A network device cannot be created.
    #[error("cannot create a network device")]
    Net(#[source] io::Error),
}

/// A machine, and the handles with which the sandbox controls it.
pub struct AssembledMachine {
    /// The machine, whose vCPUs do not run yet.
    pub machine: Machine,
    /// Creates further vCPUs.
    pub vcpus: VcpuSource,
    /// Receives the reason for which the machine ended.
    pub exit: ExitReceiver,
    /// The network devices, with nothing attached.
    pub slots: Slots,
    /// Plugs and unplugs memory.
    pub resizer: Resizer,
}

/// Builds a machine with virtio-fs, vsock, entropy, network and memory devices. The guest mounts the shares of `file_server` and
/// connects to `ports`.
///
/// # Errors
/// KVM, the kernel or a device is unusable. Everything that was created is released.
pub fn assemble(
    resources: Resources,
    event_loop: &LoopHandle,
    file_server: Server,
    ports: Ports,
) -> Result<AssembledMachine, AssemblyError> {
    let network_slots = resources.network_slots;
    let request_queues = u16::from(resources.vcpus.min(MAX_REQUEST_QUEUES));
    let mut builder = MachineBuilder::new(resources)?;
    builder.add_device(FsDevice::new(SHARES_TAG, file_server, request_queues, None)?)?;
    builder.add_device(Vsock::new(ports, event_loop.clone(), None).map_err(AssemblyError::Vsock)?)?;
    builder.add_device(Rng::new(event_loop.clone(), None))?;
    let mut slots = Vec::new();
    for number in 0..network_slots {
        let (handle, slot) = net::slot(number).map_err(AssemblyError::Net)?;
        builder.add_device(Net::new(slot, event_loop.clone(), None))?;
        slots.push(handle);
    }
    let (resizer, pluggable) = builder.pluggable()?;
    builder.add_device(Mem::new(pluggable, event_loop.clone(), None))?;
    let (machine, vcpus, exit) = builder.build()?;
    Ok(AssembledMachine { machine, vcpus, exit, slots: Slots::new(slots), resizer })
}
