//! Slots: the place of a network device in the machine, and who attaches taps to it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use agent::slot_address;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::tap::Tap;

/// `VIRTIO_NET_S_LINK_UP`, in the low byte of the status.
const LINK_UP: u8 = 1;

/// Why a tap was not attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Every device of the machine has its tap.
    #[error("the machine has {0} network devices, and every one is in use")]
    NoSlot(usize),
    /// The device cannot be told.
    #[error("cannot wake the network device")]
    Wake(#[source] io::Error),
    /// The device is gone, which ends with the machine only.
    #[error("the network device is gone")]
    Gone,
}

/// What both ends of a slot know.
#[derive(Debug)]
pub(super) struct Link {
    /// From the moment a tap is on its way until it is lost.
    in_use: AtomicBool,
    /// Whether the driver is to see a carrier.
    up: AtomicBool,
    /// Readable when a tap is on its way.
    pub(super) attach_event: EventFd,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    /// The configuration space of the device with `address` (virtio 1.2, section 5.1.4): address and status.
    pub(super) fn config(&self, address: [u8; 6]) -> [u8; 8] {
        let mut config = [0; 8];
        config[..6].copy_from_slice(&address);
        config[6] = u8::from(self.is_up()) * LINK_UP;
        config
    }

    pub(super) fn set_up(&self) {
        self.up.store(true, Ordering::SeqCst);
    }

    /// The tap is lost: the slot can be used again.
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
    /// Its number, from 0.
    pub(super) number: u8,
    pub(super) link: Arc<Link>,
    taps: Receiver<Tap>,
    /// What frames go to and come from.
    pub(super) tap: Option<Tap>,
}

/// Both ends of slot `number`, with no tap attached.
///
/// # Errors
/// There is no descriptor left.
pub fn slot(number: u8) -> io::Result<(SlotHandle, Slot)> {
    let attach_event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let link = Arc::new(Link { in_use: AtomicBool::new(false), up: AtomicBool::new(false), attach_event });
    let (sender, taps) = channel();
    Ok((SlotHandle { link: Arc::clone(&link), taps: sender }, Slot { number, link, taps, tap: None }))
}

impl SlotHandle {
    /// Whether no tap is attached or on its way.
    fn is_free(&self) -> bool {
        !self.link.in_use.load(Ordering::SeqCst)
    }

    /// Hands `tap` to the device, which takes it when its driver works.
    ///
    /// # Errors
    /// The device is gone or cannot be told.
    pub fn attach(&self, tap: Tap) -> Result<(), AttachError> {
        self.link.in_use.store(true, Ordering::SeqCst);
        self.taps.send(tap).map_err(|_| AttachError::Gone)?;
        self.link.attach_event.write(1).map_err(AttachError::Wake)
    }
}

impl Slot {
    /// The device's address until the guest gives it another.
    pub(super) fn address(&self) -> [u8; 6] {
        slot_address(self.number)
    }

    /// Takes a tap that has come, in the place of the one before.
    pub(super) fn take_attached(&mut self) -> Option<&Tap> {
        let tap = self.taps.try_recv().ok()?;
        self.tap = Some(tap);
        self.tap.as_ref()
    }
}

/// All slots of a machine, as the sandbox sees them.
#[derive(Debug, Default)]
pub struct Slots(Vec<SlotHandle>);

impl Slots {
    /// Slots in the order of their numbers.
    #[must_use]
    pub fn new(slots: Vec<SlotHandle>) -> Self {
        Self(slots)
    }

    /// Attaches `tap` to the first free slot: the slot's number.
    ///
    /// # Errors
    /// There is none, or its device cannot be told.
    pub fn attach(&self, tap: Tap) -> Result<u8, AttachError> {
        let free = (0..).zip(&self.0).find(|(_, slot)| slot.is_free());
        let (number, slot) = free.ok_or(AttachError::NoSlot(self.0.len()))?;
        slot.attach(tap).map(|()| number)
    }
}
