//! Connections to ports of the host.

use std::os::fd::OwnedFd;

use agent::StreamSecret;
use rustix::io::Errno;

use crate::sys::vsock;

/// The host as the other end of streams.
#[derive(Default)]
pub(crate) struct Host {
    /// `None` until the VMM has sent it.
    secret: Option<StreamSecret>,
}

impl Host {
    /// Sets the secret that shows the VMM that a connection is the agent's.
    pub(crate) fn set_secret(&mut self, secret: StreamSecret) {
        self.secret = Some(secret);
    }

    /// Connects a stream to `port`. Blocks until the connection is established; the socket itself is non-blocking.
    /// Fails with `ENOKEY` before the VMM has sent the secret.
    pub(crate) fn connect(&self, port: u32) -> rustix::io::Result<OwnedFd> {
        let secret = self.secret.as_ref().ok_or(Errno::NOKEY)?;
        vsock::connect_to_host(port, secret.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stream_is_opened_without_the_secret() {
        assert_eq!(Host::default().connect(1025).unwrap_err(), Errno::NOKEY);
    }
}
