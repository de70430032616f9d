//! The machine of a sandbox, with its devices in the order of their addresses.

use std::io;
use std::sync::Arc;

use agent::SHARES_TAG;
use thiserror::Error;

use super::exit::ExitReceiver;
use super::resources::Resources;
use super::template::{DeviceStates, MachineState, Shape, Template};
use super::vcpu::VcpuSource;
use super::{Machine, MachineBuilder, MachineError, RunningMachine};
use crate::event_loop::LoopHandle;
use crate::fs::{FsDevice, FsError, Server};
use crate::mem::{Mem, Resizer};
use crate::net::{self, Net, Slots};
use crate::virtio::mmio::MmioTransport;
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
    /// The connection to the helper cannot be duplicated.
    #[error("cannot duplicate the connection to the helper")]
    NodeMaker(#[source] io::Error),
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
    /// The devices, to be saved.
    pub devices: Devices,
}

/// The devices of a machine. A clone refers to the same devices.
#[derive(Clone)]
pub struct Devices {
    fs: Arc<MmioTransport<FsDevice>>,
    vsock: Arc<MmioTransport<Vsock>>,
    rng: Arc<MmioTransport<Rng>>,
    net: Vec<Arc<MmioTransport<Net>>>,
    mem: Arc<MmioTransport<Mem>>,
    shape: Shape,
}

impl Devices {
    /// Stops the machine whose devices these are, and returns its state. Not to be called on the event loop's thread: the event loop
    /// returns the devices' queues.
    ///
    /// # Errors
    /// KVM cannot save the vCPU or the virtual machine.
    pub fn stop(&self, machine: RunningMachine) -> Result<MachineState, MachineError> {
        let (vm, vcpu) = machine.stop()?;
        let devices = DeviceStates {
            fs: self.fs.save(),
            vsock: self.vsock.save(),
            rng: self.rng.save(),
            net: self.net.iter().map(|device| device.save()).collect(),
            mem: self.mem.save(),
        };
        Ok(MachineState { shape: self.shape.clone(), vm, vcpu, devices })
    }
}

/// Builds a machine with virtio-fs, vsock, entropy, network and memory devices. The guest mounts the shares of `file_server` and
/// connects to `ports`. It starts from `template`, if there is one; then the number of its network devices is that of the template.
///
/// # Errors
/// KVM, the kernel, a device or the template is unusable. Everything that was created is released.
pub fn assemble(
    resources: &Resources,
    template: Option<Template>,
    event_loop: &LoopHandle,
    file_server: Server,
    ports: Ports,
) -> Result<AssembledMachine, AssemblyError> {
    let saved = template.as_ref().map(|template| (template.state.shape.clone(), template.state.devices.clone()));
    let (shape, devices) = saved.unzip();
    let states = devices.as_ref();
    let network_slots = shape.as_ref().map_or(resources.network_slots, |shape| shape.network_slots);
    let request_queues = resources.vcpus.min(MAX_REQUEST_QUEUES).into();
    let request_queues = shape.as_ref().map_or(request_queues, |shape| shape.request_queues);
    let mut builder = MachineBuilder::new(resources, template)?;
    let device = FsDevice::new(SHARES_TAG, file_server, request_queues, states.map(|states| states.fs.device.clone()))?;
    let fs = builder.add_device(device, states.map(|states| &states.fs))?;
    let device = Vsock::new(ports, event_loop.clone(), states.map(|states| states.vsock.device));
    let vsock = builder.add_device(device.map_err(AssemblyError::Vsock)?, states.map(|states| &states.vsock))?;
    let device = Rng::new(event_loop.clone(), states.map(|states| states.rng.device));
    let rng = builder.add_device(device, states.map(|states| &states.rng))?;
    let (mut slots, mut net) = (Vec::new(), Vec::new());
    for number in 0..network_slots {
        let state = states.and_then(|states| states.net.get(usize::from(number)));
        let (handle, slot) = net::slot(number).map_err(AssemblyError::Net)?;
        let device = Net::new(slot, event_loop.clone(), state.map(|state| state.device));
        net.push(builder.add_device(device, state)?);
        slots.push(handle);
    }
    let (resizer, pluggable) = builder.pluggable()?;
    let device = Mem::new(pluggable, event_loop.clone(), states.map(|states| &states.mem.device));
    let mem = builder.add_device(device, states.map(|states| &states.mem))?;
    let devices = Devices { fs, vsock, rng, net, mem, shape: builder.shape(network_slots, request_queues) };
    let (machine, vcpus, exit) = builder.build()?;
    Ok(AssembledMachine { machine, vcpus, exit, slots: Slots::new(slots), resizer, devices })
}
