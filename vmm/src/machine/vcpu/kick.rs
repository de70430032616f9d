//! Makes a vCPU thread leave `KVM_RUN`, by a signal.

use std::cell::Cell;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// `kvm_run.immediate_exit` of this thread's vCPU; null if the thread runs none.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// Makes the thread's vCPU leave `KVM_RUN`, or not enter it. Set what the vCPU checks after `KVM_RUN` before the call.
pub(super) fn kick<T>(vcpu: &JoinHandle<T>) {
    if let Err(error) = vcpu.kill(SIGRTMIN()) {
        tracing::error!(%error, "cannot signal a vCPU thread");
    }
}

/// While it lives, the signal handler on this thread can reach this thread's vCPU.
pub(super) struct KickTarget;

impl KickTarget {
    pub(super) fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}

/// Runs on the vCPU's own thread. A kick before `KVM_RUN` makes it return at once, and a kick during it interrupts it, so no
/// kick is lost.
extern "C" fn on_kick(_signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer refers to the vCPU's `kvm_run` mapping, which outlives the `KickTarget` that set it on this
        // thread. The kernel only reads the byte, and no reference to it is held across `KVM_RUN`.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::SeqCst);
    }
}

/// Installs the signal handler once for the process.
pub(super) fn install_kick_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| register_signal_handler(SIGRTMIN(), on_kick).expect("SIGRTMIN takes a handler"));
}
