//! Slots: the network devices of a machine, to which taps are attached.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use agent::slot_address;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::tap::Tap;

/// `VIRTIO_NET_S_LINK_UP`, in the low byte of `status` (virtio 1.2, section 5.1.4).
const LINK_UP: u8 = 1;

/// Why a tap was not attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Every network device of the machine has a tap.
    #[error("the machine has {0} network devices, and every one is in use")]
    NoSlot(usize),
    /// The device's eventfd cannot be written.
    #[error("cannot wake the network device")]
    Wake(#[source] io::Error),
    /// The device has ended, which happens only at the end of the machine.
    #[error("the network device has ended")]
    Gone,
}

/// The state that both ends of a slot share.
#[derive(Debug)]
pub(super) struct Link {
    /// Set from [`SlotHandle::attach`] until the tap is detached.
    in_use: AtomicBool,
    /// Whether the driver sees the link as up.
    up: AtomicBool,
    /// Readable after a tap was sent to the device.
    pub(super) attach_event: EventFd,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    /// The device configuration space (virtio 1.2, section 5.1.4): MAC `address` and status.
    pub(super) fn config(&self, address: [u8; 6]) -> [u8; 8] {
        let mut config = [0; 8];
        config[..6].copy_from_slice(&address);
        config[6] = u8::from(self.is_up()) * LINK_UP;
        config
    }

    pub(super) fn set_up(&self) {
        self.up.store(true, Ordering::SeqCst);
    }

    /// Sets the link down and the slot free, after the tap was detached.
    pub(super) fn set_down(&self) {
        self.up.store(false, Ordering::SeqCst);
        self.in_use.store(false, Ordering::SeqCst);
    }
}

/// The sandbox's end of a slot.
#[derive(Debug)]
pub struct SlotHandle {
    link: Arc<Link>,
    taps: Sender<Tap>,
}

/// The device's end of a slot.
#[derive(Debug)]
pub struct Slot {
    /// The slot's number, from 0.
    pub(super) number: u8,
    pub(super) link: Arc<Link>,
    taps: Receiver<Tap>,
    /// The attached tap.
    pub(super) tap: Option<Tap>,
}

/// Both ends of slot `number`, without a tap.
///
/// # Errors
/// The process has no free file descriptor.
pub fn slot(number: u8) -> io::Result<(SlotHandle, Slot)> {
    let attach_event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let link = Arc::new(Link { in_use: AtomicBool::new(false), up: AtomicBool::new(false), attach_event });
    let (sender, taps) = channel();
    Ok((SlotHandle { link: Arc::clone(&link), taps: sender }, Slot { number, link, taps, tap: None }))
}

impl SlotHandle {
    /// Whether no tap is attached or sent to the device.
    fn is_free(&self) -> bool {
        !self.link.in_use.load(Ordering::SeqCst)
    }

    /// Sends `tap` to the device, which takes it while its driver is active.
    ///
    /// # Errors
    /// The device has ended, or its eventfd cannot be written.
    pub fn attach(&self, tap: Tap) -> Result<(), AttachError> {
        self.link.in_use.store(true, Ordering::SeqCst);
        self.taps.send(tap).map_err(|_| AttachError::Gone)?;
        self.link.attach_event.write(1).map_err(AttachError::Wake)
    }
}

impl Slot {
    /// The device's MAC address, until the guest sets another one.
    pub(super) fn address(&self) -> [u8; 6] {
        slot_address(self.number)
    }

    /// Takes a tap that was sent, in place of the previous one.
    pub(super) fn take_attached(&mut self) -> Option<&Tap> {
        let tap = self.taps.try_recv().ok()?;
        self.tap = Some(tap);
        self.tap.as_ref()
    }
}

/// The sandbox's ends of all slots of a machine.
#[derive(Debug, Default)]
pub struct Slots(Vec<SlotHandle>);

impl Slots {
    /// `slots` are in the order of their numbers.
    #[must_use]
    pub fn new(slots: Vec<SlotHandle>) -> Self {
        Self(slots)
    }

    /// Attaches `tap` to the first free slot. Returns the slot's number.
    ///
    /// # Errors
    /// There is no free slot, or its device cannot be notified.
    pub fn attach(&self, tap: Tap) -> Result<u8, AttachError> {
        let free = (0..).zip(&self.0).find(|(_, slot)| slot.is_free());
        let (number, slot) = free.ok_or(AttachError::NoSlot(self.0.len()))?;
        slot.attach(tap).map(|()| number)
    }
}
