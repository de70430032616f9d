//! vmrt's virtual machine monitor. Each sandbox has one VMM process, and only this process accesses the guest.
//!
//! The modules are layers. Each uses only those of the rows above it, which a test of `vmrt-tests` checks.
//!
//! 1. [`config`]: the sandbox's configuration, as the runtime sends it.
//! 2. [`arch`]: memory layout, boot parameters and vCPU state of x86-64.
//! 3. [`control`]: the protocol of the control socket, and both of its ends.
//! 4. [`helper`]: the protocol of the process that does what the jail forbids.
//! 5. [`event_loop`], [`timeline`], [`jail`]: the thread that serves the control socket and the devices that never block; times
//!    of the start's stages; what the VMM takes away from itself.
//! 6. [`virtio`]: devices, virtqueues and the virtio-mmio transport.
//! 7. [`fs`], [`vsock`], [`net`], [`mem`]: the devices virtio-fs, vsock, network and virtio-mem.
//! 8. [`machine`]: KVM, memory, vCPUs and the bus, assembled with the devices; [`probe`] measures the host's KVM.
//! 9. [`process`]: arguments and log of the `vmrt-vmm` program.
//! 10. [`sandbox`]: the controller that connects clients, guest and machine.
//! 11. [`program`]: the `vmrt-vmm` program.
//! 12. `fuzz` (feature `fuzzing`): the targets of the fuzzer.

pub mod arch;
pub mod config;
pub mod control;
pub mod event_loop;
pub mod fs;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod helper;
pub mod jail;
pub mod machine;
pub mod mem;
pub mod net;
pub mod process;
pub mod program;
pub mod sandbox;
pub mod timeline;
pub mod virtio;
pub mod vsock;

pub use machine::probe;

/// An error and its chain of causes as one line, separated by `: `.
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

/// A text without control characters (C0, DEL and C1). Each becomes an escape sequence that is valid in a JSON string as well, so
/// that a text of the guest cannot control the terminal on which it is shown, or start a new line.
#[must_use]
pub fn escape_control_characters(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            control if control.is_control() => escaped.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::escape_control_characters;

    #[test]
    fn control_characters_become_escape_sequences_of_json() {
        let hostile = "a\u{1b}]0;title\u{7}\n\r\t\0\u{7f}\u{9b}31mä";
        let escaped = escape_control_characters(hostile);
        assert_eq!(escaped, r"a\u001b]0;title\u0007\n\r\t\u0000\u007f\u009b31mä");
        assert_eq!(serde_json::from_str::<String>(&format!("\"{escaped}\"")).unwrap(), hostile);
    }
}
