//! The event loop: one thread that serves the control socket and all devices whose system calls do not block.
//!
//! It owns [`Subscriber`]s. Other threads add and remove them through a [`LoopHandle`]. A removed subscriber is returned with its
//! original type.

use std::any::Any;
use std::marker::PhantomData;

use event_manager::{Error, EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId};

/// A receiver of the loop's events.
pub trait Subscriber: MutEventSubscriber + Send + 'static {
    /// Converts the subscriber to [`Any`], so that [`LoopHandle::remove`] can restore its type.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

impl<T: MutEventSubscriber + Send + 'static> Subscriber for T {
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// A subscriber in the form that the loop stores.
pub type BoxedSubscriber = Box<dyn Subscriber>;

/// The event loop. It runs on the thread that owns it.
pub type EventLoop = EventManager<BoxedSubscriber>;

/// Identifies a subscriber of type `T` in the loop.
#[derive(Debug)]
pub struct Registration<T> {
    id: SubscriberId,
    subscriber: PhantomData<fn() -> T>,
}

/// Accesses the loop from other threads.
///
/// Each call blocks until the loop's thread has executed it. A call from the loop's own thread would block forever; use the
/// [`EventLoop`] there.
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
    /// The loop has ended.
    pub fn add<T: Subscriber>(&self, subscriber: T) -> Result<Registration<T>, Error> {
        let boxed: BoxedSubscriber = Box::new(subscriber);
        let id = self.0.call_blocking(move |ops| Ok::<_, Error>(ops.add_subscriber(boxed)))?;
        Ok(Registration { id, subscriber: PhantomData })
    }

    /// Removes a subscriber from the loop and returns it. The loop does not access it afterwards.
    ///
    /// # Errors
    /// The loop has ended.
    #[expect(clippy::needless_pass_by_value, reason = "the registration is invalid afterwards")]
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
        total: u64,
        reports: mpsc::Sender<u64>,
    }

    impl MutEventSubscriber for Counter {
        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            self.total += self.event.read().unwrap();
            self.reports.send(self.total).unwrap();
        }

        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.event, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn a_removed_subscriber_keeps_its_state_and_is_not_served() {
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
        let (reports, receiver) = mpsc::channel();
        let registration = handle.add(Counter { event, total: 0, reports }).unwrap();
        writer.write(3).unwrap();
        assert_eq!(receiver.recv().unwrap(), 3);
        let counter = handle.remove(registration).unwrap();
        assert_eq!(counter.total, 3);
        writer.write(1).unwrap();
        stop.store(true, Ordering::SeqCst);
        thread.join().unwrap();
        assert!(receiver.try_recv().is_err(), "the loop served a removed subscriber");
    }
}
