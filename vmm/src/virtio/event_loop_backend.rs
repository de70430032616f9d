//! The backend of a device that is served in the event loop.

use std::io;

use super::device::{ActivateError, VirtQueue};
use crate::event_loop::{LoopHandle, Registration, Subscriber};

/// A backend `B`. While the device is inactive, the device owns it. While the device is active, the event loop owns it
/// as part of a handler `H`, together with the device's queues.
pub(crate) struct EventLoopBackend<B, H> {
    event_loop: LoopHandle,
    state: State<B, H>,
}

enum State<B, H> {
    /// Boxed because the value is moved often.
    Inactive(Box<B>),
    Active(Registration<H>),
    /// The event loop failed while it owned the backend.
    Lost,
}

impl<B, H: Subscriber> EventLoopBackend<B, H> {
    /// An inactive backend.
    pub(crate) fn new(event_loop: LoopHandle, backend: B) -> Self {
        Self { event_loop, state: State::Inactive(Box::new(backend)) }
    }

    /// The backend, if it is inactive.
    pub(crate) fn inactive(&self) -> Option<&B> {
        match &self.state {
            State::Inactive(backend) => Some(backend),
            State::Active(_) | State::Lost => None,
        }
    }

    /// Makes a handler of the backend and moves it into the event loop.
    ///
    /// # Errors
    /// The backend is active already, or the event loop has ended.
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

    /// Takes the handler out of the event loop and splits it into queues and backend. Returns the queues; none if the
    /// backend was inactive. `device` names the device in log messages.
    pub(crate) fn deactivate(&mut self, device: &str, parts: impl FnOnce(H) -> (Vec<VirtQueue>, B)) -> Vec<VirtQueue> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Active(registration) => match self.event_loop.remove(registration) {
                Ok(handler) => {
                    let (queues, backend) = parts(handler);
                    self.state = State::Inactive(Box::new(backend));
                    queues
                }
                Err(error) => {
                    tracing::error!(%error, "the event loop does not return the {device} queues");
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
