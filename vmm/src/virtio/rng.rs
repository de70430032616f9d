//! The entropy device (virtio 1.2, section 5.4). It gives the guest random bytes from the host's kernel.

use std::sync::atomic::Ordering;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::Bytes;

use super::device::{ActivateError, Activation, Interrupt, VirtQueue, VirtioDevice};
use crate::arch::Memory;
use crate::event_loop::{LoopHandle, Registration};

const QUEUE_SIZES: [u16; 1] = [64];

/// The most bytes that one request gets. A device may write less than the buffer holds; the driver then sends another
/// request.
const MAX_BYTES: usize = 4096;

/// The most descriptors of a request. Linux needs one. A table of indirect descriptors can hold more than the queue.
const MAX_DESCRIPTORS: usize = 64;

/// The saved state of an entropy device, which is empty: no state outlasts a request.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RngState {}

/// The entropy device. Its queue is served in the event loop.
pub struct Rng {
    event_loop: LoopHandle,
    active: Option<Registration<RngHandler>>,
}

impl Rng {
    /// A device served by `event_loop`. A restored device equals a new one.
    #[must_use]
    pub fn new(event_loop: LoopHandle, _state: Option<RngState>) -> Self {
        Self { event_loop, active: None }
    }
}

impl VirtioDevice for Rng {
    type State = RngState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, mut queues, interrupt, .. } = activation;
        let queue = queues.pop().filter(|queue| queue.queue.ready()).ok_or(ActivateError::QueueDisabled(0))?;
        self.active = Some(self.event_loop.add(RngHandler { memory, queue, interrupt })?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        let handler = self.active.take().map(|registration| self.event_loop.remove(registration));
        match handler {
            Some(Ok(handler)) => vec![handler.queue],
            Some(Err(error)) => {
                tracing::error!(%error, "the event loop does not return the entropy device's queue");
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    fn save(&self) -> RngState {
        RngState {}
    }
}

/// The active device, in the event loop.
struct RngHandler {
    memory: Memory,
    queue: VirtQueue,
    interrupt: Interrupt,
}

impl RngHandler {
    /// Fills available buffers, at most a queue's size of them per call, so that a driver that always adds buffers does
    /// not block the event loop.
    fn serve(&mut self) -> Result<(), ServeError> {
        let queue = &mut self.queue.queue;
        let mut used = false;
        for _ in 0..queue.size() {
            let Some(mut chain) = queue.iter(&self.memory)?.next() else { break };
            let written =
                fill(&self.memory, chain.by_ref().take(MAX_DESCRIPTORS).find(|descriptor| descriptor.is_write_only()))?;
            queue.add_used(&self.memory, chain.head_index(), written)?;
            used = true;
        }
        if queue.avail_idx(&self.memory, Ordering::Acquire)?.0 != queue.next_avail() {
            self.queue.notify.write(1).map_err(ServeError::Notify)?;
        }
        if used && queue.needs_notification(&self.memory)? {
            self.interrupt.notify_used_buffers().map_err(ServeError::Interrupt)?;
        }
        Ok(())
    }
}

/// Writes random bytes to the start of `buffer` and returns their number.
fn fill(memory: &Memory, buffer: Option<virtio_queue::desc::split::Descriptor>) -> Result<u32, ServeError> {
    let Some(buffer) = buffer else { return Ok(0) };
    let mut bytes = [0; MAX_BYTES];
    let length = MAX_BYTES.min(usize::try_from(buffer.len()).unwrap_or(MAX_BYTES));
    let bytes = &mut bytes[..length];
    random(bytes).map_err(ServeError::Random)?;
    memory.write_slice(bytes, buffer.addr())?;
    Ok(u32::try_from(length).expect("at most 4096"))
}

/// Fills `bytes` with random bytes of the host's kernel.
///
/// # Errors
/// The kernel provides none.
pub(crate) fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: `rest` is a live, writable slice of `rest.len()` bytes.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return Err(std::io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// Why a request could not be served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the driver's queue is broken")]
    Queue(#[from] virtio_queue::Error),
    #[error("the driver's buffer does not lie in guest memory")]
    Buffer(#[from] vm_memory::GuestMemoryError),
    #[error("the host provides no random bytes")]
    Random(#[source] std::io::Error),
    #[error("cannot reschedule the queue")]
    Notify(#[source] std::io::Error),
    #[error("cannot interrupt the guest")]
    Interrupt(#[source] std::io::Error),
}

impl MutEventSubscriber for RngHandler {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.queue.clear_notification();
        if let Err(error) = self.serve() {
            // After a driver breaks its queue, the device does not serve it until reset. A driver can repeat this
            // without end, so it is only logged at debug level.
            tracing::debug!("the entropy device stops: {}", crate::chain(&error));
            if let Err(error) = ops.remove(events) {
                tracing::error!(%error, "cannot stop watching the entropy device's queue");
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.queue.notify, EventSet::IN)) {
            tracing::error!(%error, "cannot watch the entropy device's queue");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::virtio::testing::rewriting::{Chain, rewrite_while_read};
    use crate::virtio::testing::{Driver, LoopThread, PLUGGED, UNPLUGGED, life_cycle};

    fn check(driver: &mut Driver<Rng>) {
        let first = driver.request(0, &[], &[64]);
        let second = driver.request(0, &[], &[64]);
        assert_eq!((first.len(), second.len()), (64, 64));
        assert_ne!(first, second);
        assert_ne!(first, [0; 64]);
    }

    #[test]
    fn the_device_passes_the_life_cycle_test() {
        let event_loop = LoopThread::start();
        life_cycle(|state| Rng::new(event_loop.handle(), state), check);
    }

    #[test]
    fn a_full_queue_of_buffers_is_filled() {
        let event_loop = LoopThread::start();
        let mut driver = Driver::new(Rng::new(event_loop.handle(), None));
        driver.set_up();
        for _ in 0..3 {
            let heads: Vec<u16> = (0..QUEUE_SIZES[0]).map(|_| driver.make_available(0, &[], &[16])).collect();
            driver.notify(0);
            assert_eq!(heads, heads.iter().map(|_| driver.wait_used(0).head).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_buffer_outside_guest_memory_stops_the_device_until_reset() {
        let event_loop = LoopThread::start();
        let mut driver = Driver::new(Rng::new(event_loop.handle(), None));
        driver.set_up();
        driver.make_available_at(0, u64::MAX - 10, 64);
        driver.notify(0);
        std::thread::sleep(Duration::from_millis(50));
        driver.make_available(0, &[], &[16]);
        driver.notify(0);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(driver.take_used(0), None);
        driver.reset();
        driver.set_up();
        check(&mut driver);
    }

    #[test]
    fn only_plugged_memory_gets_random_bytes() {
        let event_loop = LoopThread::start();
        let mut driver = Driver::new(Rng::new(event_loop.handle(), None));
        for address in [UNPLUGGED, UNPLUGGED - 32, UNPLUGGED + 4096 - 64] {
            driver.set_up();
            let plugged = driver.make_available_at(0, PLUGGED, 64);
            driver.notify(0);
            assert_eq!(driver.take_used_element(0), (plugged, 64));
            driver.make_available_at(0, address, 64);
            driver.notify(0);
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(driver.take_used(0), None, "{address:#x} was filled");
            driver.reset();
        }
    }

    #[test]
    fn chains_that_change_while_they_are_read_do_no_harm() {
        let event_loop = LoopThread::start();
        let mut driver = Driver::new(Rng::new(event_loop.handle(), None));
        let chains = [
            Chain { queue: 0, readable: &[], writable: &[64] },
            Chain { queue: 0, readable: &[b"read me"], writable: &[16, 5000] },
        ];
        let used = rewrite_while_read(&mut driver, &chains, &[0], || ());
        assert!(used > 100, "{used} chains were used");
        driver.set_up();
        check(&mut driver);
    }

    #[test]
    fn a_request_gets_at_most_a_page_and_a_readable_chain_gets_nothing() {
        let event_loop = LoopThread::start();
        let mut driver = Driver::new(Rng::new(event_loop.handle(), None));
        driver.set_up();
        assert_eq!(driver.request(0, &[], &[100_000]).len(), MAX_BYTES);
        assert_eq!(driver.request(0, &[b"read me"], &[]).len(), 0);
    }
}
