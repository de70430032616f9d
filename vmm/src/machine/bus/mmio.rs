//! virtio-mmio devices by guest-physical address.

use std::sync::Arc;

use crate::arch::layout;
use crate::virtio::mmio::Registers;

/// The devices by address. It is complete before the vCPUs run, so it needs no lock.
#[derive(Clone, Default)]
pub struct MmioBus {
    devices: Vec<Arc<dyn Registers>>,
}

impl MmioBus {
    /// Number of devices.
    #[must_use]
    pub fn count(&self) -> usize {
        self.devices.len()
    }

    /// Adds a device at the next free address.
    pub fn add(&mut self, device: Arc<dyn Registers>) {
        self.devices.push(device);
    }

    /// Writes to `address`. A write to an address without a device has no effect.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    /// Activates restored devices, see [`Registers::resume`].
    pub fn resume(&self) {
        self.devices.iter().for_each(|device| device.resume());
    }

    fn find(&self, address: u64) -> Option<(&dyn Registers, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_MMIO_START)?;
        let index = usize::try_from(offset / layout::VIRTIO_MMIO_SIZE).ok()?;
        Some((self.devices.get(index)?.as_ref(), offset % layout::VIRTIO_MMIO_SIZE))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct Register(AtomicU64);

    impl Registers for Register {
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.store(offset + u64::from(data[0]), Ordering::Relaxed);
        }

        fn resume(&self) {}
    }

    #[test]
    fn a_write_reaches_only_the_device_at_its_address() {
        let devices = [Arc::new(Register::default()), Arc::new(Register::default())];
        let mut bus = MmioBus::default();
        for device in &devices {
            bus.add(Arc::<Register>::clone(device));
        }
        bus.write(layout::VIRTIO_MMIO_START + layout::VIRTIO_MMIO_SIZE + 0x40, &[2]);
        assert_eq!(devices[1].0.load(Ordering::Relaxed), 0x42);
        assert_eq!(devices[0].0.load(Ordering::Relaxed), 0);
        for unused in
            [0, layout::VIRTIO_MMIO_START - 1, layout::VIRTIO_MMIO_START + 2 * layout::VIRTIO_MMIO_SIZE, u64::MAX]
        {
            bus.write(unused, &[9]);
        }
        assert_eq!(devices[0].0.load(Ordering::Relaxed), 0);
    }
}
