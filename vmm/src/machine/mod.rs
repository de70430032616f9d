//! The machine: memory, vCPUs, interrupt controllers and virtio devices, put together and run.
//!
//! ```text
//! Resources::open ─► MachineBuilder::new ─► add_device ... ─► build ─► Machine::start ─► RunningMachine
//!  files open          memory, VM, kernel                      vCPUs     first guest instruction
//! ```
//!
//! Every descriptor is open when `build` returns; `start` only makes threads.

pub mod assembly;
pub mod bus;
pub mod command_line;
pub mod exit;
pub mod kernel;
pub mod kvm;
pub mod memory;
pub mod resources;
mod vcpu;
pub mod vcpus;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use kvm_ioctls::{IoEventAddress, VmFd};
use thiserror::Error;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::{self, CpuidTemplate, Firmware, FirmwareError, VcpuSetupError, layout};
use crate::mem::{self, Pluggable, Region, Resizer};
use crate::serial::Console;
use crate::timeline;
use crate::virtio::device::{Interrupt, Memory, VirtQueue, VirtioDevice};
use crate::virtio::mmio::MmioTransport;
use crate::virtio::registers::{RegisterPage, register};
use bus::{MmioBus, Ports};
use exit::ExitReceiver;
use kernel::{LoadError, Loaded};
use kvm::KvmError;
use memory::MemoryError;
use resources::{OpenFile, Resources};
use vcpu::{Shared, Vcpu};
use vcpus::{Factory, Threads, VcpuSource};

/// Why there is no machine.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM cannot run it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// It has no memory.
    #[error("cannot create the guest's memory")]
    Memory(#[from] MemoryError),
    /// It has nothing to boot.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel cannot be told of its machine.
    #[error("cannot describe the machine to the guest's kernel")]
    Firmware(#[from] FirmwareError),
    /// A vCPU cannot be made.
    #[error("cannot create vCPU {0}")]
    CreateVcpu(u8, #[source] kvm_ioctls::Error),
    /// A vCPU cannot be set up.
    #[error("cannot set up vCPU {0}")]
    SetUpVcpu(u8, #[source] VcpuSetupError),
    /// There is no thread to load the guest's software.
    #[error("cannot start the thread that loads the guest's software")]
    LoadThread(#[source] io::Error),
    /// A vCPU has no thread.
    #[error("cannot start the thread of vCPU {0}")]
    Thread(u8, #[source] io::Error),
    /// No descriptor is left.
    #[error("cannot create an event descriptor")]
    Event(#[source] io::Error),
    /// No memory is left.
    #[error("cannot map the devices' registers")]
    Registers(#[source] io::Error),
    /// There is no interrupt line left.
    #[error("the machine has no room for more than {max} devices", max = layout::MAX_VIRTIO_DEVICES)]
    TooManyDevices,
    /// There is no address that memory could be plugged at.
    #[error("cannot make room for memory to be plugged in")]
    Pluggable(#[source] MemoryError),
    /// A device's doorbell or interrupt line cannot be tied to a descriptor.
    #[error("cannot wire virtio device {0}")]
    Wire(usize, #[source] kvm_ioctls::Error),
}

/// A machine in the making.
pub struct MachineBuilder {
    vm: Arc<VmFd>,
    memory: Memory,
    memory_size: u64,
    memory_most: u64,
    overcommit_most: u64,
    /// What can be plugged in, behind the rest of `memory`.
    region: Region,
    cpuid: CpuidTemplate,
    vcpus: u8,
    vcpus_most: u8,
    /// Reads the guest's software into its memory meanwhile.
    loading: JoinHandle<Result<Loaded, LoadError>>,
    console_log: Option<std::fs::File>,
    mmio: MmioBus,
    /// What devices' registers say, in order; those of devices that are not there are zero.
    registers: Vec<RegisterPage>,
    /// Where acknowledgements of used buffers go, which nobody needs.
    acknowledged: EventFd,
}

impl MachineBuilder {
    /// A machine with memory, without devices. Its kernel is being loaded: much of the rest is waiting for KVM.
    ///
    /// # Errors
    /// KVM is unusable.
    pub fn new(resources: Resources) -> Result<Self, MachineError> {
        let kvm = kvm::open(resources.vcpus)?;
        let vcpus_most =
            u8::try_from(kvm.get_max_vcpus()).map_or(resources.vcpus_most, |most| most.min(resources.vcpus_most));
        timeline::mark("KVM opened");
        let memory_size = resources.memory_size;
        let memory = memory::map(memory_size)?;
        let loading = load(memory.clone(), memory_size, resources.kernel, resources.initramfs)?;
        let registers = RegisterPage::map(layout::MAX_VIRTIO_DEVICES.into()).map_err(MachineError::Registers)?;
        let vm = kvm::create_vm(&kvm, &memory, &registers)?;
        timeline::mark("virtual machine created");
        let (memory, region) = add_pluggable(&memory, memory_size, resources.memory_most)?;
        let refused = |error| KvmError::Refused("tell what CPUID it supports", error);
        let cpuid = CpuidTemplate::new(&kvm, vcpus_most).map_err(refused)?;
        Ok(Self {
            vm: Arc::new(vm),
            memory,
            memory_size,
            memory_most: resources.memory_most,
            overcommit_most: resources.overcommit_most,
            region,
            cpuid,
            vcpus: resources.vcpus,
            vcpus_most,
            loading,
            console_log: resources.console_log,
            mmio: MmioBus::default(),
            registers,
            acknowledged: event()?,
        })
    }

    /// Both ends of what resizes the machine's memory: the sandbox's, and what a memory device is made of.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn pluggable(&self) -> Result<(Resizer, Pluggable), MachineError> {
        let (vm, region) = (Arc::clone(&self.vm), self.region.clone());
        let connect = move || kvm::add_region(&vm, &region);
        mem::pluggable(self.region.clone(), self.memory_size, self.memory_most, Box::new(connect))
            .map_err(MachineError::Event)
    }

    /// Adds a device behind a transport of its own, its doorbells and its interrupt wired to the virtual machine.
    ///
    /// # Errors
    /// There is no interrupt line or descriptor left, or KVM refused.
    pub fn add_device<D: VirtioDevice + 'static>(&mut self, device: D) -> Result<Arc<MmioTransport<D>>, MachineError> {
        let index = self.mmio.count();
        let (address, irq) = command_line::places().nth(index).ok_or(MachineError::TooManyDevices)?;
        let registers = *self.registers.get(index).ok_or(MachineError::TooManyDevices)?;
        let refused = |error| MachineError::Wire(index, error);
        let line = event()?;
        self.vm.register_irqfd(&line, irq).map_err(refused)?;
        let acknowledge = IoEventAddress::Mmio(address + register::INTERRUPT_ACK);
        self.vm.register_ioevent(&self.acknowledged, &acknowledge, VIRTIO_MMIO_INT_VRING).map_err(refused)?;
        let mut queues = Vec::new();
        for (number, size) in (0_u32..).zip(device.queue_sizes()) {
            let kick = event()?;
            let doorbell = IoEventAddress::Mmio(address + register::QUEUE_NOTIFY);
            self.vm.register_ioevent(&kick, &doorbell, number).map_err(refused)?;
            queues.push(VirtQueue::new(*size, kick));
        }
        let interrupt = Interrupt::new(registers, Arc::new(line));
        let transport = Arc::new(MmioTransport::new(device, queues, self.memory.clone(), interrupt));
        self.mmio.add(Arc::<MmioTransport<D>>::clone(&transport));
        Ok(transport)
    }

    /// Makes the vCPUs and tells the kernel of its machine: the machine, what makes further vCPUs for it, and what hears of
    /// its end.
    ///
    /// # Errors
    /// KVM refused, or there is no descriptor left.
    pub fn build(mut self) -> Result<(Machine, VcpuSource, ExitReceiver), MachineError> {
        let command_line = command_line::build(self.mmio.count(), self.overcommit_most, self.console_log.is_some());
        let devices = u8::try_from(self.mmio.count()).expect("no more devices than interrupt lines");
        let (sender, receiver) = exit::channel().map_err(MachineError::Event)?;
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Shared {
            mmio: std::mem::take(&mut self.mmio),
            ports: Arc::new(Ports::new(Console::new(self.console_log.take()))),
            exit: Arc::new(sender),
            stop: Arc::clone(&stop),
        };
        let factory = Factory { vm: self.vm, cpuid: self.cpuid, shared };
        let vcpus: Vec<Vcpu> = (0..self.vcpus).map(|id| factory.create(id)).collect::<Result<_, _>>()?;
        timeline::mark("devices and vCPUs created");
        let loaded = self.loading.join().expect("a thread that returns its errors does not panic")?;
        let firmware = Firmware {
            memory_size: self.memory_size,
            vcpus: self.vcpus_most,
            devices,
            initramfs: (loaded.initramfs_start, loaded.initramfs_size),
            command_line: &command_line,
        };
        arch::write_firmware(&self.memory, &firmware, &factory.cpuid)?;
        arch::set_up_boot_vcpu(&vcpus[0].fd, loaded.entry).map_err(|error| MachineError::SetUpVcpu(0, error))?;
        let source = VcpuSource::new(factory, self.vcpus, self.vcpus_most);
        Ok((Machine { vcpus, threads: Threads::new(stop) }, source, receiver))
    }
}

/// `memory`, of `size` bytes, and behind it what may be plugged in until there are `most`.
fn add_pluggable(memory: &Memory, size: u64, most: u64) -> Result<(Memory, Region), MachineError> {
    let start = layout::pluggable_start(size);
    let mapping = memory::map_pluggable(start, most.saturating_sub(size), layout::PLUGGABLE_UNIT)
        .map_err(MachineError::Pluggable)?;
    let memory = memory.insert_region(Arc::clone(&mapping)).map_err(|error| MachineError::Pluggable(error.into()))?;
    let region = Region::new(mapping).expect("it consists of units, which are whole blocks");
    Ok((memory, region))
}

/// Reads kernel and initramfs into `memory` on a thread of its own.
fn load(
    memory: Memory,
    size: u64,
    mut kernel: OpenFile,
    mut initramfs: OpenFile,
) -> Result<JoinHandle<Result<Loaded, LoadError>>, MachineError> {
    let work = move || {
        let loaded = kernel::load(&memory, size, &mut kernel, &mut initramfs);
        timeline::mark("kernel and initramfs loaded");
        loaded
    };
    std::thread::Builder::new()
        .name("load".to_owned())
        .stack_size(vcpu::STACK)
        .spawn(work)
        .map_err(MachineError::LoadThread)
}

fn event() -> Result<EventFd, MachineError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(MachineError::Event)
}

/// A machine that is ready to run.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    threads: Threads,
}

impl Machine {
    /// Runs the first guest instruction.
    ///
    /// # Errors
    /// The host has no thread left. vCPUs that run already are stopped.
    pub fn start(mut self) -> Result<RunningMachine, MachineError> {
        for vcpu in self.vcpus {
            self.threads.run(vcpu)?;
        }
        timeline::mark("vCPUs started");
        Ok(RunningMachine { _threads: self.threads })
    }
}

/// A machine whose vCPUs run. They stop when it is dropped.
///
/// Drop it only after the event loop: a vCPU that hands a device's queues to the loop waits for it.
pub struct RunningMachine {
    _threads: Threads,
}
