//! Forwards signals of the VMM's process to the main container.

use nix::sys::signal::Signal;

use super::{Controller, Purpose};

impl Controller {
    /// Handles all pending signals.
    pub(super) fn forward_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::SIGWINCH => self.resize_terminal(),
                signal if self.processes.check_alive(&self.main).is_ok() && self.is_created => {
                    let (process, number) = (self.main.clone(), signal as i32);
                    let request = agent::Request::Container(agent::ContainerRequest::Signal {
                        process,
                        signal: number,
                        all: false,
                    });
                    self.call_agent(request, format!("forward {signal}"), Purpose::Internal);
                }
                Signal::SIGUSR1 | Signal::SIGUSR2 => {}
                signal => self.end_by_signal(signal),
            }
        }
    }

    /// Gives the guest's terminal the size of the host's.
    fn resize_terminal(&mut self) {
        if let Some(size) = self.processes.terminal_size(&self.main) {
            let request =
                agent::Request::Container(agent::ContainerRequest::Resize { process: self.main.clone(), size });
            self.call_agent(request, "resize the terminal".to_owned(), Purpose::Internal);
        }
    }
}
