//! A process's standard streams: vsock ports that the guest connects to, bridged to descriptors of the host.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use agent::{Stdio, TerminalSize};

use crate::control::StdioFds;
use crate::vsock::{Bridge, Flow, Ports};

/// A process's connections to the host.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct Streams {
    ports: Vec<u32>,
    flows: Vec<Arc<Flow>>,
    /// A duplicate of the host's terminal, to read its size.
    terminal: Option<OwnedFd>,
}

impl Streams {
    /// Opens a port for each stream. `fds` has as many descriptors as [`StdioFds::count`] of `stdio`.
    pub(in crate::sandbox) fn open(ports: &Ports, stdio: StdioFds, fds: Vec<OwnedFd>) -> (Self, Stdio) {
        let mut streams = Self::default();
        let mut fds = fds.into_iter();
        let mut listen = |source, sink| {
            let (port, flow) = ports.listen(Bridge::new(source, sink));
            streams.ports.push(port);
            streams.flows.push(flow);
            port
        };
        let stdio = match stdio {
            StdioFds::Terminal { size, no_carriage_return } => {
                let source = fds.next();
                let terminal = source.as_ref().and_then(|fd| fd.try_clone().ok());
                let stdio = Stdio::Terminal { port: listen(source, fds.next()), size, no_carriage_return };
                streams.terminal = terminal;
                stdio
            }
            StdioFds::Streams { stdin, stdout, stderr } => Stdio::Streams {
                stdin: stdin.then(|| listen(fds.next(), None)),
                stdout: stdout.then(|| listen(None, fds.next())),
                stderr: stderr.then(|| listen(None, fds.next())),
            },
        };
        (streams, stdio)
    }

    /// Adds ports that are closed with the streams.
    pub(super) fn add_ports(&mut self, ports: impl Iterator<Item = u32>) {
        self.ports.extend(ports);
    }

    /// Closes the ports that the guest has not connected to.
    pub(super) fn close(&self, ports: &Ports) {
        self.ports.iter().for_each(|port| ports.close(*port));
    }

    /// Whether all output was written to the host's descriptors.
    pub(super) fn is_drained(&self) -> bool {
        // The first flow that is not drained signals when it is. The controller then asks again for all of them.
        self.flows.iter().all(|flow| flow.is_drained())
    }

    /// The size of the host's terminal.
    pub(super) fn terminal_size(&self) -> Option<TerminalSize> {
        window_size(self.terminal.as_ref()?)
    }
}

mod ioctl {
    nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);
}

/// The size of a terminal, in characters; `None` if the descriptor is no terminal.
pub(in crate::sandbox) fn window_size(terminal: &OwnedFd) -> Option<TerminalSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and the request writes one `winsize`, which `size` is.
    unsafe { ioctl::get_window_size(terminal.as_raw_fd(), &raw mut size) }.ok()?;
    Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}
