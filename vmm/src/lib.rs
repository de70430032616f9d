//! vmrt's virtual machine monitor. Each sandbox has one VMM process, and only this process accesses the guest.
//!
//! The modules are layers. Each uses only those of the rows above it, which a test of `vmrt-tests` checks.
//!
//! 1. [`config`]: the sandbox's configuration, as the runtime sends it.
//! 2. [`arch`]: memory layout, boot parameters and vCPU state of x86-64.
//! 3. [`control`]: the protocol of the control socket, and both of its ends.
//! 4. [`event_loop`], [`timeline`]: the thread that serves the control socket and the devices that never block; times of the
//!    start's stages.
//! 5. [`virtio`]: devices, virtqueues and the virtio-mmio transport.
//! 6. [`fs`], [`vsock`], [`net`], [`mem`]: the devices virtio-fs, vsock, network and virtio-mem.
//! 7. [`machine`]: KVM, memory, vCPUs and the bus, assembled with the devices; [`probe`] measures the host's KVM.
//! 8. [`process`]: arguments and log of the `vmrt-vmm` program, and the OOM notifier, which is the same program.
//! 9. [`sandbox`]: the controller that connects clients, guest and machine.
//! 10. `fuzz` (feature `fuzzing`): the targets of the fuzzer.

pub mod arch;
pub mod config;
pub mod control;
pub mod event_loop;
pub mod fs;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod machine;
pub mod mem;
pub mod net;
pub mod process;
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
