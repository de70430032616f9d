//! The event loop: one thread that serves the control socket and every device whose system calls do not block.
//!
//! Whatever it serves is a [`Subscriber`]. The loop owns it; other threads put one in and take it out again with a
//! [`LoopHandle`], and get it back with its own type.

use std::any::Any;
use std::marker::PhantomData;

use event_manager::{Error, EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId};

/// Something the loop serves.
pub trait Subscriber: MutEventSubscriber + Send + 'static {
    /// Gives up the type, for [`LoopHandle::remove`] to find it again.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

impl<T: MutEventSubscriber + Send + 'static> Subscriber for T {
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// A subscriber as the loop stores it.
pub type BoxedSubscriber = Box<dyn Subscriber>;

/// The loop. It runs on the thread that owns it.
pub type EventLoop = EventManager<BoxedSubscriber>;

/// Proof that a `T` is in the loop.
#[derive(Debug)]
pub struct Registration<T> {
    id: SubscriberId,
    subscriber: PhantomData<fn() -> T>,
}

/// Reaches the loop from other threads.
///
/// Each call waits until the loop thread has done it: a call from the loop thread itself would wait for ever. Inside the
/// loop, use the [`EventLoop`] itself.
#[derive(Clone)]
pub struct LoopHandle(RemoteEndpoint<BoxedSubscriber>);

impl LoopHandle {
    /// A handle to `event_loop`.
    #[must_use]
    pub fn new(event_loop: &EventLoop) -> Self {
        Self(event_loop.remote_endpoint())
    }

    /// Moves `subscriber` into the loop, which calls its `init` before this returns.
    ///
    /// # Errors
    /// The loop is gone.
    pub fn add<T: Subscriber>(&self, subscriber: T) -> Result<Registration<T>, Error> {
        let boxed: BoxedSubscriber = Box::new(subscriber);
        let id = self.0.call_blocking(move |ops| Ok::<_, Error>(ops.add_subscriber(boxed)))?;
        Ok(Registration { id, subscriber: PhantomData })
    }

    /// Takes a subscriber out of the loop. When this returns, the loop does not touch it any more.
    ///
    /// # Errors
    /// The loop is gone.
    #[expect(clippy::needless_pass_by_value, reason = "the registration ends here")]
    pub fn remove<T: Subscriber>(&self, registration: Registration<T>) -> Result<T, Error> {
        let id = registration.id;
        let boxed = self.0.call_blocking(move |ops| ops.remove_subscriber(id))?;
        boxed.into_any().downcast().map(|subscriber| *subscriber).map_err(|_| Error::InvalidId)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};

    use event_manager::{EventOps, EventSet, Events};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    struct Counter {
        event: EventFd,
        seen: u64,
        told: mpsc::Sender<u64>,
    }

    impl MutEventSubscriber for Counter {
        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            self.seen += self.event.read().unwrap();
            self.told.send(self.seen).unwrap();
        }

        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.event, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn a_subscriber_works_in_the_loop_and_comes_back_with_its_state() {
        let (handle_sender, handle_receiver) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut event_loop = EventLoop::new().unwrap();
            handle_sender.send(LoopHandle::new(&event_loop)).unwrap();
            while !stopped.load(Ordering::SeqCst) {
                event_loop.run_with_timeout(10).unwrap();
            }
        });
        let handle = handle_receiver.recv().unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let writer = event.try_clone().unwrap();
        let (told, hear) = mpsc::channel();
        let registration = handle.add(Counter { event, seen: 0, told }).unwrap();
        writer.write(3).unwrap();
        assert_eq!(hear.recv().unwrap(), 3);
        let counter = handle.remove(registration).unwrap();
        assert_eq!(counter.seen, 3);
        writer.write(1).unwrap();
        stop.store(true, Ordering::SeqCst);
        thread.join().unwrap();
        assert!(hear.try_recv().is_err(), "the loop served a subscriber it had handed back");
    }
}
