//! A device's thread that a test stops at a chosen place: when it interrupts the driver.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_setfl};

use super::*;

impl<D: VirtioDevice> Driver<D> {
    /// Requests an interrupt for the chain of `queue` after the next `count` ones, and for no other.
    pub(crate) fn interrupt_after(&self, queue: usize, count: u16) {
        let ring = &self.rings[queue];
        assert!(self.event_idx, "the device interrupts for every chain");
        let used_event = ring.avail() + 4 + 2 * u64::from(ring.size);
        self.memory.store(ring.used_idx.wrapping_add(count), GuestAddress(used_event), Ordering::SeqCst).unwrap();
    }

    /// Stops the next thread that interrupts the driver. It waits because the eventfd is full.
    pub(crate) fn hold(&self) {
        while self.line.read().is_ok() {}
        self.set_line_flags(OFlags::empty());
        self.line.write(u64::MAX - 1).unwrap();
    }

    /// Lets the thread continue.
    pub(crate) fn release(&self) {
        self.set_line_flags(OFlags::NONBLOCK);
        self.line.read().unwrap();
    }

    fn set_line_flags(&self, flags: OFlags) {
        // SAFETY: the descriptor is open while `self` is borrowed.
        let line = unsafe { BorrowedFd::borrow_raw(self.line.as_raw_fd()) };
        fcntl_setfl(line, flags).unwrap();
    }

    /// The number of used chains that the driver has not taken.
    pub(crate) fn used_count(&self, queue: usize) -> u16 {
        let ring = &self.rings[queue];
        let index: u16 = self.memory.load(GuestAddress(ring.used() + 2), Ordering::SeqCst).unwrap();
        index.wrapping_sub(ring.used_idx)
    }
}
