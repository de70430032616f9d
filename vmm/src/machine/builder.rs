//! Builds a machine and starts its vCPUs.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::MachineError;
use super::boot::{self, Loading};
use super::bus::{Console, IoPorts, MmioBus};
use super::exit::{self, ExitReceiver, ExitSender};
use super::kvm::{self, KvmError};
use super::memory::{self, Backing};
use super::resources::Resources;
use super::template::{MEMORY_OFFSET, MachineState, Shape, Template, TemplateError};
use super::vcpu::{Vcpu, VcpuContext, VcpuFactory, VcpuSource, VcpuThreads};
use crate::arch::Memory;
use crate::arch::{self, CpuidTemplate, Firmware, VcpuState, VmState, layout};
use crate::mem::{self, Pluggable, Region, Resizer};
use crate::timeline;
use crate::virtio::device::{Interrupt, VirtQueue, VirtioDevice};
use crate::virtio::mmio::MmioTransport;
use crate::virtio::registers::{RegisterPage, register};
use crate::virtio::state::TransportState;

/// A machine that is being built.
pub struct MachineBuilder {
    vm: Arc<VmFd>,
    memory: Memory,
    /// Bytes of memory at boot.
    memory_size: u64,
    /// Most bytes of memory at run time.
    max_memory_size: u64,
    max_allocation: u64,
    /// The pluggable memory, which is the last region of `memory`.
    region: Region,
    cpuid: CpuidTemplate,
    vcpus: u8,
    max_vcpus: u8,
    msrs: Vec<u32>,
    origin: Origin,
    console_log: Option<File>,
    mmio: MmioBus,
    /// The devices' registers in the order of the devices. Those of absent devices are zero.
    registers: Vec<RegisterPage>,
    /// Receives the guest's writes to the interrupt acknowledgement registers for used buffers. Nothing reads it: the writes
    /// only must not cause exits.
    acknowledged: EventFd,
}

/// What the guest starts from.
enum Origin {
    /// Kernel and initramfs, which a thread loads into the memory.
    Boot(Loading),
    /// The state of a template, whose memory is mapped.
    Template(Box<MachineState>),
}

impl MachineBuilder {
    /// A machine with memory and without devices. It starts from `template`, if there is one. Otherwise its kernel is loaded by a
    /// thread, because most of the remaining work is waiting for KVM.
    ///
    /// # Errors
    /// KVM is unusable, memory cannot be mapped, the thread cannot be created, or the template is of another kind of machine.
    pub fn new(resources: &Resources, template: Option<Template>) -> Result<Self, MachineError> {
        let kvm = kvm::check(resources.kvm.try_clone().map_err(MachineError::Event)?, resources.vcpus)?;
        let max_vcpus =
            u8::try_from(kvm.get_max_vcpus()).map_or(resources.max_vcpus, |max| max.min(resources.max_vcpus));
        timeline::mark("KVM opened");
        let memory_size = template.as_ref().map_or(resources.memory_size, |template| template.state.shape.memory_size);
        let (memory, origin) = match template {
            Some(template) => {
                (memory::map(memory_size, Backing::Template(&template.file))?, Origin::Template(template.state))
            }
            None => {
                let memory = memory::map(memory_size, new_memory(resources)?)?;
                let loading =
                    boot::start_loading(memory.clone(), memory_size, &resources.kernel, &resources.initramfs)?;
                (memory, Origin::Boot(loading))
            }
        };
        let registers = RegisterPage::map(layout::MAX_VIRTIO_DEVICES.into()).map_err(MachineError::Registers)?;
        let vm = kvm::create_vm(&kvm, &memory, &registers)?;
        timeline::mark("virtual machine created");
        let pluggable = resources.max_memory_size.saturating_sub(memory_size).min(kvm::max_pluggable(&kvm));
        let (memory, region) = add_pluggable(&memory, memory_size, pluggable)?;
        let refused = |error| KvmError::Refused("report the CPUID that it supports", error);
        let cpuid = CpuidTemplate::new(&kvm, max_vcpus).map_err(refused)?;
        let builder = Self {
            vm: Arc::new(vm),
            memory,
            memory_size,
            max_memory_size: resources.max_memory_size,
            max_allocation: resources.max_allocation,
            region,
            cpuid,
            vcpus: resources.vcpus,
            max_vcpus,
            msrs: kvm.get_msr_index_list().map_err(refused)?.as_slice().to_vec(),
            origin,
            console_log: resources
                .console_log
                .as_ref()
                .map(File::try_clone)
                .transpose()
                .map_err(MachineError::Event)?,
            mmio: MmioBus::default(),
            registers,
            acknowledged: event()?,
        };
        builder.check_shape()?;
        Ok(builder)
    }

    /// Whether the machine of the template, if there is one, is of the same kind.
    fn check_shape(&self) -> Result<(), TemplateError> {
        let Origin::Template(state) = &self.origin else { return Ok(()) };
        let (saved, present) = (&state.shape, self.shape(state.shape.network_slots, state.shape.request_queues));
        match () {
            () if saved.cpuid != present.cpuid => Err(TemplateError::Shape("processor")),
            () if saved.pluggable != present.pluggable => Err(TemplateError::Shape("maximum of memory")),
            () if saved.max_vcpus != present.max_vcpus => Err(TemplateError::Shape("maximum of vCPUs")),
            () => Ok(()),
        }
    }

    /// What the guest finds out about its machine.
    pub(super) fn shape(&self, network_slots: u8, request_queues: u16) -> Shape {
        Shape {
            memory_size: self.memory_size,
            pluggable: self.region.length(),
            max_vcpus: self.max_vcpus,
            network_slots,
            request_queues,
            cpuid: self.cpuid.for_vcpu(0).as_slice().to_vec(),
        }
    }

    /// Both ends of the control of the machine's memory: the sandbox's, and the part of the memory device.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn pluggable(&self) -> Result<(Resizer, Pluggable), MachineError> {
        let (vm, region) = (Arc::clone(&self.vm), self.region.clone());
        let set_block =
            move |block, plugged| kvm::set_block(&vm, &region, block, plugged).map_err(std::io::Error::other);
        mem::pluggable(self.region.clone(), self.memory_size, self.max_memory_size, Box::new(set_block))
            .map_err(MachineError::Event)
    }

    /// Adds a device with its own virtio-mmio transport, and connects its doorbells and its interrupt line to descriptors. With a
    /// state, the driver's set-up is restored.
    ///
    /// # Errors
    /// No interrupt line or file descriptor is left, KVM refused, or the state does not fit.
    pub fn add_device<D: VirtioDevice + 'static>(
        &mut self,
        device: D,
        state: Option<&TransportState<D::State>>,
    ) -> Result<Arc<MmioTransport<D>>, MachineError> {
        let index = self.mmio.count();
        let (address, irq) = layout::virtio_mmio_devices().nth(index).ok_or(MachineError::TooManyDevices)?;
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
        let memory = self.memory.clone();
        let transport = match state {
            None => MmioTransport::new(device, queues, memory, interrupt),
            Some(state) => MmioTransport::restore(device, queues, memory, interrupt, state)
                .map_err(|error| MachineError::RestoreDevice(index, error))?,
        };
        let transport = Arc::new(transport);
        self.mmio.add(Arc::<MmioTransport<D>>::clone(&transport));
        Ok(transport)
    }

    /// Creates the vCPUs and writes the boot parameters. Returns the machine, the source of further vCPUs, and the receiver
    /// of the machine's end.
    ///
    /// # Errors
    /// KVM refused, kernel or initramfs cannot be loaded, or no file descriptor is left.
    pub fn build(mut self) -> Result<(Machine, VcpuSource, ExitReceiver), MachineError> {
        let devices = self.mmio.count();
        let command_line = boot::command_line(devices, self.max_allocation, self.console_log.is_some());
        let (sender, receiver) = exit::channel().map_err(MachineError::Event)?;
        let stop = Arc::new(AtomicBool::new(false));
        let context = VcpuContext {
            mmio: std::mem::take(&mut self.mmio),
            ports: Arc::new(IoPorts::new(Console::new(self.console_log.take()))),
            exit: Arc::new(sender),
            stop: Arc::clone(&stop),
        };
        let (vm, exit) = (Arc::clone(&self.vm), Arc::clone(&context.exit));
        let factory = VcpuFactory { vm: self.vm, cpuid: self.cpuid, context };
        let mut vcpus: Vec<Vcpu> = (0..self.vcpus).map(|id| factory.create(id)).collect::<Result<_, _>>()?;
        timeline::mark("devices and vCPUs created");
        match self.origin {
            Origin::Boot(loading) => {
                let loaded = loading.join().expect("a thread that returns its errors does not panic")?;
                let firmware = Firmware {
                    memory_size: self.memory_size,
                    vcpus: self.max_vcpus,
                    devices: u8::try_from(devices).expect("no more devices than interrupt lines"),
                    initramfs: (loaded.initramfs_start, loaded.initramfs_size),
                    command_line: &command_line,
                };
                arch::write_firmware(&self.memory, &firmware, &factory.cpuid)?;
                arch::set_up_boot_vcpu(&vcpus[0].fd, loaded.entry)
                    .map_err(|error| MachineError::SetUpVcpu(0, error))?;
            }
            Origin::Template(state) => {
                // The other vCPUs wait until the guest starts them, as after a boot.
                state.vm.restore(&vm).map_err(MachineError::RestoreVm)?;
                state.vcpu.restore(&vcpus[0].fd).map_err(MachineError::RestoreVcpu)?;
                vcpus[0].is_restored = true;
                timeline::mark("vCPU restored");
            }
        }
        let source = VcpuSource::new(factory, self.vcpus, self.max_vcpus);
        Ok((Machine { vcpus, threads: VcpuThreads::new(stop), vm, msrs: self.msrs, exit }, source, receiver))
    }
}

/// Where the memory of a machine that boots comes from.
fn new_memory(resources: &Resources) -> Result<Backing<'_>, MachineError> {
    let Some(file) = &resources.new_template else { return Ok(Backing::Zeros) };
    file.set_len(MEMORY_OFFSET + resources.memory_size).map_err(|error| TemplateError::Io("extend", error))?;
    Ok(Backing::NewTemplate(file))
}

/// Adds a region of `pluggable` bytes after `memory`, which has `size` bytes. Returns all of the memory, and the region.
fn add_pluggable(memory: &Memory, size: u64, pluggable: u64) -> Result<(Memory, Region), MachineError> {
    let start = layout::pluggable_start(size);
    let mapping = memory::map_pluggable(start, pluggable, layout::PLUGGABLE_UNIT).map_err(MachineError::Pluggable)?;
    let memory = memory.insert_region(Arc::clone(&mapping)).map_err(|error| MachineError::Pluggable(error.into()))?;
    let region = Region::new(mapping).expect("it consists of units, which are whole blocks");
    Ok((memory, region))
}

fn event() -> Result<EventFd, MachineError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(MachineError::Event)
}

/// A machine that is ready to run.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    threads: VcpuThreads,
    vm: Arc<VmFd>,
    /// Indices of the model-specific registers that KVM can save.
    msrs: Vec<u32>,
    exit: Arc<ExitSender>,
}

impl Machine {
    /// Starts the vCPUs.
    ///
    /// # Errors
    /// A thread cannot be created. The vCPUs that run already are stopped.
    pub fn start(mut self) -> Result<RunningMachine, MachineError> {
        for vcpu in self.vcpus {
            self.threads.run(vcpu)?;
        }
        timeline::mark("vCPUs started");
        Ok(RunningMachine { threads: self.threads, vm: self.vm, msrs: self.msrs, exit: self.exit })
    }
}

/// A machine whose vCPUs run. Dropping it stops them.
///
/// Drop it after the event loop: a vCPU that hands a device's queues to the event loop waits for it.
pub struct RunningMachine {
    threads: VcpuThreads,
    vm: Arc<VmFd>,
    msrs: Vec<u32>,
    exit: Arc<ExitSender>,
}

impl RunningMachine {
    /// The sender of the machine's end.
    #[must_use]
    pub fn exit_sender(&self) -> Arc<ExitSender> {
        Arc::clone(&self.exit)
    }

    /// Stops the vCPUs, and returns the state of the first one and of what KVM emulates.
    ///
    /// # Errors
    /// KVM refused, or the thread of the vCPU has failed.
    pub fn stop(self) -> Result<(VmState, VcpuState), MachineError> {
        let mut vcpus = self.threads.stop();
        let vcpu = vcpus.first_mut().ok_or(MachineError::NoVcpu)?;
        vcpu.complete_exit();
        let vcpu = VcpuState::save(&vcpu.fd, &self.msrs).map_err(MachineError::RestoreVcpu)?;
        let vm = VmState::save(&self.vm).map_err(MachineError::RestoreVm)?;
        Ok((vm, vcpu))
    }
}
