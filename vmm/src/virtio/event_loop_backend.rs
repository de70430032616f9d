//! Where the backend of a device is that works in the event loop.

use std::io;

use super::device::{ActivateError, VirtQueue};
use crate::event_loop::{LoopHandle, Registration, Subscriber};

/// A backend `B`, which is with the device while that is inactive, and in the event loop while a handler `H` works
/// with it and the device's queues.
pub(crate) struct EventLoopBackend<B, H> {
    event_loop: LoopHandle,
    state: State<B, H>,
}

enum State<B, H> {
    /// Boxed, since it is moved about.
    Inactive(Box<B>),
    Active(Registration<H>),
    /// The event loop failed while it held the backend.
    Lost,
}

impl<B, H: Subscriber> EventLoopBackend<B, H> {
    /// A backend that does not work yet.
    pub(crate) fn new(event_loop: LoopHandle, backend: B) -> Self {
        Self { event_loop, state: State::Inactive(Box::new(backend)) }
    }

    /// The backend, while it does not work.
    pub(crate) fn inactive(&self) -> Option<&B> {
        match &self.state {
            State::Inactive(backend) => Some(backend),
            State::Active(_) | State::Lost => None,
        }
    }

    /// Has the event loop serve the handler that is made of the backend.
    ///
    /// # Errors
    /// It works already, or the event loop is gone.
    pub(crate) fn activate(&mut self, handler: impl FnOnce(B) -> H) -> Result<(), ActivateError> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Inactive(backend) => {
                self.state = State::Active(self.event_loop.add(handler(*backend))?);
                Ok(())
            }
            other => {
                self.state = other;
                Err(ActivateError::System("activate a device twice", io::ErrorKind::ResourceBusy.into()))
            }
        }
    }

    /// Takes the handler back and apart: the queues, none where it did not work. `device` is whose they are.
    pub(crate) fn deactivate(&mut self, device: &str, parts: impl FnOnce(H) -> (Vec<VirtQueue>, B)) -> Vec<VirtQueue> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Active(registration) => match self.event_loop.remove(registration) {
                Ok(handler) => {
                    let (queues, backend) = parts(handler);
                    self.state = State::Inactive(Box::new(backend));
                    queues
                }
                Err(error) => {
                    tracing::error!(%error, "the event loop does not hand the {device} queues back");
                    Vec::new()
                }
            },
            inactive => {
                self.state = inactive;
                Vec::new()
            }
        }
    }
}
