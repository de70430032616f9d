//! The registers of virtio-mmio devices as the guest reads them: pages of this process that KVM maps read-only into the
//! guest.
//!
//! A read of a register takes no exit. An exit takes thousands of instructions. A write takes an exit as usual. The
//! pages *are* the readable registers: code that changes a register's value stores it here. The guest cannot change the
//! pages.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// Register offsets (virtio 1.2, section 4.2.2).
pub(crate) mod register {
    pub(crate) const MAGIC: u64 = 0x00;
    pub(crate) const VERSION: u64 = 0x04;
    pub(crate) const DEVICE_ID: u64 = 0x08;
    pub(crate) const VENDOR_ID: u64 = 0x0c;
    pub(crate) const DEVICE_FEATURES: u64 = 0x10;
    pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub(crate) const DRIVER_FEATURES: u64 = 0x20;
    pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(crate) const QUEUE_SEL: u64 = 0x30;
    pub(crate) const QUEUE_NUM_MAX: u64 = 0x34;
    pub(crate) const QUEUE_NUM: u64 = 0x38;
    pub(crate) const QUEUE_READY: u64 = 0x44;
    /// Queue notification. KVM delivers the write of a queue's number to that queue's ioeventfd, and the transport does
    /// not see it.
    pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
    pub(crate) const INTERRUPT_ACK: u64 = 0x64;
    pub(crate) const STATUS: u64 = 0x70;
    pub(crate) const QUEUE_DESC_LOW: u64 = 0x80;
    pub(crate) const QUEUE_DESC_HIGH: u64 = 0x84;
    pub(crate) const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub(crate) const QUEUE_DRIVER_HIGH: u64 = 0x94;
    pub(crate) const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub(crate) const QUEUE_DEVICE_HIGH: u64 = 0xa4;
    pub(crate) const SHM_LEN_LOW: u64 = 0xb0;
    pub(crate) const SHM_LEN_HIGH: u64 = 0xb4;
    pub(crate) const SHM_BASE_LOW: u64 = 0xb8;
    pub(crate) const SHM_BASE_HIGH: u64 = 0xbc;
    pub(crate) const CONFIG_GENERATION: u64 = 0xfc;
    pub(crate) const CONFIG: u64 = 0x100;
}

/// Size of the readable device configuration space in bytes.
const CONFIG_SIZE: usize = 256;

/// A page, which is [`crate::arch::layout::VIRTIO_MMIO_SIZE`] bytes.
const PAGE: usize = 0x1000;
type Page = [AtomicU32; PAGE / size_of::<AtomicU32>()];

/// The registers of one device.
#[derive(Clone, Copy, Debug)]
pub struct RegisterPage(&'static Page);

impl RegisterPage {
    /// Maps `count` consecutive pages of zeros. They live as long as the process, because vCPUs read them until its
    /// end.
    ///
    /// # Errors
    /// The host has no memory left.
    pub fn map(count: usize) -> io::Result<Vec<Self>> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing that exists.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), count * PAGE, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping holds `count` pages of zeros, which are valid atomics. It is aligned to a page, it is
        // never unmapped, and no other reference to it exists.
        let pages: &'static [Page] = unsafe { std::slice::from_raw_parts(address.cast(), count) };
        Ok(pages.iter().map(Self).collect())
    }

    /// The page's address in this process.
    #[must_use]
    pub fn address(self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// The 32-bit register at `offset`.
    ///
    /// # Panics
    /// `offset` is outside the page.
    pub(super) fn at(self, offset: u64) -> &'static AtomicU32 {
        let index = usize::try_from(offset).expect("an offset within a page") / size_of::<AtomicU32>();
        &self.0[index]
    }

    /// Stores `value` as the register at `offset`.
    pub(super) fn store(self, offset: u64, value: u32) {
        self.at(offset).store(value, Ordering::SeqCst);
    }

    /// Stores `config` as the device configuration space, followed by zeros.
    pub(super) fn store_config(self, config: &[u8]) {
        let mut bytes = [0; CONFIG_SIZE];
        let length = config.len().min(CONFIG_SIZE);
        bytes[..length].copy_from_slice(&config[..length]);
        for (offset, word) in (register::CONFIG..).step_by(size_of::<u32>()).zip(bytes.chunks_exact(4)) {
            self.store(offset, u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::layout;

    #[test]
    fn pages_are_consecutive_and_do_not_overlap() {
        let pages = RegisterPage::map(2).unwrap();
        assert_eq!(pages[1].address() - pages[0].address(), layout::VIRTIO_MMIO_SIZE);
        pages[0].store(0xffc, 7);
        assert_eq!((pages[0].at(0xffc).load(Ordering::SeqCst), pages[1].at(0).load(Ordering::SeqCst)), (7, 0));
    }

    #[test]
    fn a_short_configuration_is_filled_with_zeros() {
        let page = RegisterPage::map(1).unwrap()[0];
        page.store_config(&[0xff; 300]);
        page.store_config(&[1, 2, 3, 4, 5]);
        let read = |offset| page.at(offset).load(Ordering::SeqCst);
        assert_eq!(
            (read(register::CONFIG), read(register::CONFIG + 4), read(register::CONFIG + 252)),
            (0x0403_0201, 5, 0)
        );
    }
}
