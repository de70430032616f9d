//! The virtio-mmio transport (virtio 1.2, section 4.2), version 2.
//!
//! It implements feature negotiation, the status register and the queue registers for all devices. The transport owns
//! the queues until the driver sets `DRIVER_OK`, and the device owns them from then until reset. While the device owns
//! the queues, the queue registers do not change.
//!
//! The driver reads registers from the device's [`RegisterPage`](crate::virtio::registers::RegisterPage) without an
//! exit to the transport. So the transport stores their new values there after every write. While a device is active,
//! only interrupts access the registers, and they take no lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use crate::arch::Memory;
use crate::chain;
use crate::virtio::device::{ActivateError, Activation, Interrupt, VirtQueue, VirtioDevice};
use crate::virtio::registers::register;
use crate::virtio::state::{self, RestoreError, SavedQueue, TransportState};

/// Registers of one virtio-mmio device. The guest reads them without an exit ([`super::registers`]).
pub trait Registers: Send + Sync {
    /// Writes `data` at `offset` bytes from the device's first register.
    fn write(&self, offset: u64, data: &[u8]);

    /// Activates a restored device whose driver had set it up. The thread may be any but that of the event loop, which has to run.
    fn resume(&self);
}

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"vmrt");

/// Status bits, in the order in which a driver sets them (section 3.1.1).
const STATUS_ORDER: [u32; 4] =
    [VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER_OK];

/// A device behind virtio-mmio registers.
pub struct MmioTransport<D> {
    interrupt: Interrupt,
    inner: Mutex<Inner<D>>,
}

struct Inner<D> {
    device: D,
    memory: Memory,
    interrupt: Interrupt,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    /// Set after the first failed activation is logged, since a driver can cause any number of them.
    activation_failure_logged: bool,
    /// Empty while the device owns the queues.
    queues: Vec<VirtQueue>,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// A transport for `device`, whose `queues` are in the order of [`VirtioDevice::queue_sizes`].
    pub fn new(device: D, queues: Vec<VirtQueue>, memory: Memory, interrupt: Interrupt) -> Self {
        let inner = Inner {
            device,
            memory,
            interrupt: interrupt.clone(),
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            activation_failure_logged: false,
            queues,
        };
        inner.init_registers();
        Self { interrupt, inner: Mutex::new(inner) }
    }

    /// Deactivates the device and saves it. The device stays inactive: to continue, the machine is restored from the
    /// saved state.
    pub fn save(&self) -> TransportState<D::State> {
        let mut inner = self.lock();
        let queues = inner.device.deactivate();
        inner.queues.extend(queues);
        TransportState {
            status: inner.status,
            features_sel: (inner.device_features_sel, inner.driver_features_sel),
            driver_features: inner.driver_features,
            queue_sel: inner.queue_sel,
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            queues: inner.queues.iter().map(SavedQueue::from).collect(),
            device: inner.device.save(),
        }
    }

    /// A transport in the state that its driver had set up, with a notification pending on each queue because earlier
    /// notifications are lost. [`Registers::resume`] activates its device.
    ///
    /// # Errors
    /// The state does not fit the device.
    pub fn restore(
        device: D,
        mut queues: Vec<VirtQueue>,
        memory: Memory,
        interrupt: Interrupt,
        state: &TransportState<D::State>,
    ) -> Result<Self, RestoreError> {
        state::restore_queues(&mut queues, &state.queues)?;
        interrupt.restore(state.interrupt_status, state.config_generation);
        let transport = Self::new(device, queues, memory, interrupt);
        {
            let mut inner = transport.lock();
            (inner.device_features_sel, inner.driver_features_sel) = state.features_sel;
            (inner.driver_features, inner.queue_sel) = (state.driver_features, state.queue_sel);
            inner.status = state.status;
            inner.update_registers();
        }
        Ok(transport)
    }

    fn lock(&self) -> MutexGuard<'_, Inner<D>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: VirtioDevice> Registers for MmioTransport<D> {
    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            _ => self.lock().write(offset, value),
        }
    }

    fn resume(&self) {
        let mut inner = self.lock();
        if inner.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            inner.activate();
            inner.update_registers();
        }
    }
}

impl<D: VirtioDevice> Inner<D> {
    /// Stores the registers that never change, and the initial values of the others.
    fn init_registers(&self) {
        for (offset, value) in [
            (register::MAGIC, MAGIC),
            (register::VERSION, VERSION),
            (register::DEVICE_ID, self.device.device_type()),
            (register::VENDOR_ID, VENDOR),
        ] {
            self.interrupt.registers().store(offset, value);
        }
        // The device has no shared memory regions: their length reads as -1 (section 4.2.2).
        for offset in [register::SHM_LEN_LOW, register::SHM_LEN_HIGH, register::SHM_BASE_LOW, register::SHM_BASE_HIGH] {
            self.interrupt.registers().store(offset, u32::MAX);
        }
        self.interrupt.registers().store_config(&self.device.config());
        self.update_registers();
    }

    /// Stores the registers that a write may have changed.
    fn update_registers(&self) {
        for (offset, value) in [
            (register::DEVICE_FEATURES, feature_word(self.device.features(), self.device_features_sel)),
            (register::QUEUE_NUM_MAX, self.queue_num_max()),
            (register::QUEUE_READY, u32::from(self.queue_ready())),
            (register::STATUS, self.status),
        ] {
            self.interrupt.registers().store(offset, value);
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES => self.set_driver_features(value),
            register::QUEUE_SEL => self.queue_sel = value,
            register::STATUS => self.set_status(value),
            _ if self.status & VIRTIO_CONFIG_S_DRIVER_OK == 0 => self.write_queue(offset, value),
            _ => {} // the device owns the queues
        }
        self.update_registers();
    }

    fn selected_queue(&self) -> Option<usize> {
        usize::try_from(self.queue_sel).ok()
    }

    fn queue_num_max(&self) -> u32 {
        self.selected_queue().and_then(|index| self.device.queue_sizes().get(index)).map_or(0, |size| u32::from(*size))
    }

    /// Whether the selected queue is ready. Queues that the device owns are ready.
    fn queue_ready(&self) -> bool {
        match self.selected_queue().and_then(|index| self.queues.get(index)) {
            Some(queue) => queue.queue.ready(),
            None => self.queues.is_empty() && self.queue_num_max() != 0,
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | value,
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (value << 32),
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.selected_queue().and_then(|index| self.queues.get_mut(index)) else { return };
        let queue = &mut queue.queue;
        match offset {
            register::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_READY => queue.set_ready(value == 1),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// A driver only adds bits, in the order of section 3.1.1, or writes 0 to reset the device. The transport ignores a
    /// step out of order; the driver finds out when it reads the register.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let added = value & !self.status;
        let mut before = 0;
        for step in STATUS_ORDER {
            if added & step != 0 {
                if self.status & before != before
                    || (step == VIRTIO_CONFIG_S_FEATURES_OK && !self.features_acceptable())
                {
                    return;
                }
                self.status |= step;
                if step == VIRTIO_CONFIG_S_DRIVER_OK {
                    self.activate();
                }
            }
            before |= step;
        }
        self.status |= added & VIRTIO_CONFIG_S_FAILED;
    }

    fn features_acceptable(&self) -> bool {
        let needed = 1_u64 << VIRTIO_F_VERSION_1;
        self.driver_features & !self.device.features() == 0 && self.driver_features & needed != 0
    }

    /// Moves the queues into the device. If that fails, the device needs a reset.
    fn activate(&mut self) {
        let Err(error) = self.activate_device() else { return };
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        if !std::mem::replace(&mut self.activation_failure_logged, true) {
            tracing::error!(device = self.device.device_type(), "cannot activate a virtio device: {}", chain(&error));
        }
        self.update_registers();
        if let Err(error) = self.interrupt.notify_status_change() {
            tracing::debug!(%error, "cannot interrupt the guest");
        }
    }

    fn activate_device(&mut self) -> Result<(), ActivateError> {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if queue.queue.ready() && !queue.queue.is_valid(&self.memory) {
                return Err(ActivateError::QueueInvalid(index));
            }
            queue.queue.set_event_idx(self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        }
        let spare = self.spare_queues()?;
        let result = self.device.activate(Activation {
            memory: self.memory.clone(),
            queues: std::mem::take(&mut self.queues),
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        });
        if result.is_err() {
            self.queues = spare;
        }
        result
    }

    /// Queues that the driver has not set up, with the notifications of the present ones. A device that cannot be
    /// activated drops its queues, and the driver must be able to set it up again after a reset.
    fn spare_queues(&self) -> Result<Vec<VirtQueue>, ActivateError> {
        let spare = |(queue, size): (&VirtQueue, &u16)| Ok(VirtQueue::new(*size, queue.notify.try_clone()?));
        let spare: std::io::Result<_> = self.queues.iter().zip(self.device.queue_sizes()).map(spare).collect();
        spare.map_err(|error| ActivateError::System("duplicate a queue's eventfd", error))
    }

    fn reset(&mut self) {
        let queues = self.device.deactivate();
        self.queues.extend(queues);
        self.queues.iter_mut().for_each(VirtQueue::reset);
        self.interrupt.restore(0, self.interrupt.generation());
        self.status = 0;
        (self.device_features_sel, self.driver_features_sel) = (0, 0);
        (self.driver_features, self.queue_sel) = (0, 0);
        self.interrupt.registers().store_config(&self.device.config());
    }
}

/// The 32 bits of `features` that a selector register selects.
fn feature_word(features: u64, selector: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match selector {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

#[cfg(test)]
mod hand_over_tests;
#[cfg(test)]
mod tests;
