//! vmrt's virtual machine monitor: one process per sandbox, and the only one that touches the guest.

pub mod arch;
pub mod config;
pub mod control;
pub mod event_loop;
pub mod fs;
pub mod machine;
pub mod mem;
pub mod net;
pub mod probe;
pub mod process;
pub mod sandbox;
pub mod serial;
pub mod timeline;
pub mod victim;
pub mod virtio;
pub mod vsock;

/// An error and all its causes, in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
