//! A loop of two instructions, for a guest's supervisor mode and for this process. Their times show whether KVM runs on hardware
//! or interprets the guest.

use std::arch::asm;

/// The loop as position-independent 32-bit code: `mov ecx, TURNS; again: dec ecx; jnz again; hlt`.
#[must_use]
pub fn timing_loop_code(turns: u32) -> [u8; 9] {
    let [a, b, c, d] = turns.to_le_bytes();
    [0xb9, a, b, c, d, 0x49, 0x75, 0xfd, 0xf4]
}

/// Runs the loop in this process. `turns` is at least 1.
pub fn run_timing_loop(turns: u32) {
    // SAFETY: the code changes one register, which is declared as an operand, and the flags.
    unsafe { asm!("2:", "dec {0:e}", "jnz 2b", inout(reg) turns => _, options(nomem, nostack)) };
}
