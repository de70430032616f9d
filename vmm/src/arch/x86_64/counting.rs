//! A loop of two instructions a turn, the same in a guest's supervisor mode and here: what telling KVM on hardware from an
//! interpreted one needs.

use std::arch::asm;

/// The loop as 32-bit code at any address: `mov ecx, TURNS; again: dec ecx; jnz again; hlt`.
#[must_use]
pub fn counting_code(turns: u32) -> [u8; 9] {
    let [a, b, c, d] = turns.to_le_bytes();
    [0xb9, a, b, c, d, 0x49, 0x75, 0xfd, 0xf4]
}

/// The loop in this process. `turns` is not 0.
pub fn count(turns: u32) {
    // SAFETY: changes one register, which is declared, and the flags.
    unsafe { asm!("2:", "dec {0:e}", "jnz 2b", inout(reg) turns => _, options(nomem, nostack)) };
}
