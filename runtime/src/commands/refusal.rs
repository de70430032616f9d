//! Refusing options that cannot be honoured.

use std::env;

use super::error::Error;

/// Refuses descriptors of the host for the container, by `--preserve-fds` or passed as systemd does.
pub(super) fn refuse_preserve_fds(count: u32) -> Result<(), Error> {
    let reason = "is refused: descriptors of the host mean nothing to the guest's kernel";
    refuse_if(count > 0, "--preserve-fds", reason)?;
    refuse_if(has_activation_sockets(), "LISTEN_FDS", reason)
}

/// Whether this very process was passed sockets for the container, as systemd does it.
fn has_activation_sockets() -> bool {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS").is_some_and(|count| count > 0)
}

/// Refuses an option if it was given.
pub(super) fn refuse_if(given: bool, option: &'static str, reason: &'static str) -> Result<(), Error> {
    if given { Err(Error::Refused { option, reason }) } else { Ok(()) }
}
