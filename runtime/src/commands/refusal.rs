//! Refuses options that are not supported.

use std::env;

use super::error::Error;

/// Refuses to pass descriptors of the host to the container, by `--preserve-fds` or as systemd's activation sockets.
pub(super) fn refuse_preserve_fds(count: u32) -> Result<(), Error> {
    let reason = "is refused: descriptors of the host mean nothing to the guest's kernel";
    refuse_if(count > 0, "--preserve-fds", reason)?;
    refuse_if(has_activation_sockets(), "LISTEN_FDS", reason)
}

/// Whether this process got activation sockets, sd_listen_fds(3).
fn has_activation_sockets() -> bool {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS").is_some_and(|count| count > 0)
}

/// Refuses an option if it is given.
pub(super) fn refuse_if(given: bool, option: &'static str, reason: &'static str) -> Result<(), Error> {
    if given { Err(Error::Refused { option, reason }) } else { Ok(()) }
}
