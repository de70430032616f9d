//! The machine every sandbox has: its devices, in the order in which the guest finds them.

use std::io;

use agent::SHARES_TAG;
use thiserror::Error;

use super::exit::ExitReceiver;
use super::resources::Resources;
use super::vcpus::VcpuSource;
use super::{Machine, MachineBuilder, MachineError};
use crate::event_loop::LoopHandle;
use crate::fs::{FsDevice, FsError, SharesHandle};
use crate::mem::{Mem, Resizer};
use crate::net::{self, Net, Slots};
use crate::virtio::rng::Rng;
use crate::vsock::{Ports, Vsock};

/// Most request queues of the file system device, each with a thread: more do not make a guest faster.
const MAX_REQUEST_QUEUES: u8 = 4;

/// Why a sandbox's machine could not be put together.
#[derive(Debug, Error)]
pub enum AssemblyError {
    /// The machine itself.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The file system device.
    #[error("cannot make the file system device")]
    Fs(#[from] FsError),
    /// The socket device.
    #[error("cannot make the vsock device")]
    Vsock(#[source] io::Error),
    /// A network device.
    #[error("cannot make a network device")]
    Net(#[source] io::Error),
}

/// A machine, and what reaches it from outside.
pub struct Assembled {
    /// The machine.
    pub machine: Machine,
    /// Makes further vCPUs for it.
    pub vcpus: VcpuSource,
    /// Hears of its end.
    pub exit: ExitReceiver,
    /// Its network devices, nothing attached.
    pub slots: Slots,
    /// Gives it more memory, or less.
    pub resizer: Resizer,
}

/// Builds the machine: file system, sockets, entropy, network, memory. The guest sees `shares`, and connects to `ports`.
///
/// # Errors
/// KVM, the kernel or a device is unusable; nothing is left behind.
pub fn assemble(
    resources: Resources,
    event_loop: &LoopHandle,
    shares: SharesHandle,
    ports: Ports,
) -> Result<Assembled, AssemblyError> {
    let network_slots = resources.network_slots;
    let request_queues = u16::from(resources.vcpus.min(MAX_REQUEST_QUEUES));
    let mut builder = MachineBuilder::new(resources)?;
    builder.add_device(FsDevice::new(SHARES_TAG, shares, None)?.with_request_queues(request_queues))?;
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
    Ok(Assembled { machine, vcpus, exit, slots: Slots::new(slots), resizer })
}
