//! Saves the parts of a virtual machine that KVM itself emulates for all vCPUs: interrupt controllers, timer and clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// The interrupt controllers, by KVM's numbers.
const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The state of the interrupt controllers, the timer and the clock.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    controllers: Vec<kvm_irqchip>,
    timer: kvm_pit_state2,
    /// Nanoseconds of the guest's paravirtual clock.
    clock_ns: u64,
}

impl VmState {
    /// Saves a virtual machine whose vCPUs do not run.
    ///
    /// # Errors
    /// KVM refused.
    pub fn save(vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        let save = |chip_id| {
            let mut controller = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut controller).map(|()| controller)
        };
        Ok(Self {
            controllers: CONTROLLERS.into_iter().map(save).collect::<Result<_, _>>()?,
            timer: vm.get_pit2()?,
            clock_ns: vm.get_clock()?.clock,
        })
    }

    /// Gives the state to a new virtual machine. Its clock goes on where the saved one stopped.
    ///
    /// # Errors
    /// KVM refused.
    pub fn restore(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        self.controllers.iter().try_for_each(|controller| vm.set_irqchip(controller))?;
        vm.set_pit2(&self.timer)?;
        vm.set_clock(&kvm_clock_data { clock: self.clock_ns, ..Default::default() })
    }
}
