//! Every guest-physical address of the machine, and every interrupt line.
//!
//! ```text
//! 0x0000_0000  RAM       0x0000_6000  PVH start information
//!                        0x0002_0000  kernel command line
//! 0x0009_fc00  reserved  0x0009_fc00  MP floating pointer
//!                        0x000f_0000  MP configuration table
//! 0x0010_0000  RAM       0x0100_0000  kernel, where its program headers say; initramfs at the end of low memory
//! 0xc000_0000  devices   0xd000_0000  virtio-mmio, one page each
//!                        0xfec0_0000  I/O APIC
//!                        0xfee0_0000  local APICs
//!                        0xfffb_c000  pages KVM needs for itself
//! 0x1_0000_0000  RAM above 4 GiB; behind it, aligned, what memory can be plugged at
//! ```

use vm_memory::GuestAddress;

/// PVH start information (`hvm_start_info`).
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);

/// PVH module list: one entry, the initramfs.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6100);

/// PVH memory map.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x7000);

/// Kernel command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);

/// Most bytes of the command line that Linux keeps (`COMMAND_LINE_SIZE`), its NUL included.
pub const COMMAND_LINE_SIZE: usize = 2048;

/// End of the base memory. The last KiB of 640 is where an MP floating pointer is looked for early.
pub const BASE_MEMORY_END: u64 = 0x9_fc00;

/// MP floating pointer structure.
pub const MP_FLOATING_POINTER: GuestAddress = GuestAddress(BASE_MEMORY_END);

/// MP configuration table, in what would be the BIOS: 64 processors' entries do not fit behind the pointer.
pub const MP_TABLE: GuestAddress = GuestAddress(0xf_0000);

/// Where RAM goes on above the legacy area.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// Start of the addresses below 4 GiB that are not RAM.
pub const HOLE_START: u64 = 0xc000_0000;

/// End of the hole: RAM that did not fit below it starts here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// First virtio-mmio device.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;

/// Size of a virtio-mmio device's registers: a page each.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;

/// I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;

/// Local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// A page KVM needs on Intel processors without unrestricted guest mode.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Three pages KVM needs on the same processors.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// First interrupt line for virtio devices; those below belong to the PIT, the PIC cascade and COM1.
pub const FIRST_VIRTIO_IRQ: u8 = 5;

/// Lines of the I/O APIC.
const IO_APIC_LINES: u8 = 24;

/// Most virtio devices: one for each interrupt line that is left.
pub const MAX_VIRTIO_DEVICES: u8 = IO_APIC_LINES - FIRST_VIRTIO_IRQ;

/// I/O port of the serial port COM1.
pub const COM1: u16 = 0x3f8;

/// Ports of COM1.
pub const COM1_PORTS: u16 = 8;

/// Command and status port of the keyboard controller.
pub const KEYBOARD_CONTROLLER: u16 = 0x64;

/// The keyboard controller's command that pulls the processor's reset line.
pub const KEYBOARD_CONTROLLER_RESET: u8 = 0xfe;

/// Guest RAM of `size` bytes as ranges of start and length.
#[must_use]
pub fn memory_ranges(size: u64) -> Vec<(GuestAddress, u64)> {
    let low = size.min(HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if size > low {
        ranges.push((GuestAddress(HOLE_END), size - low));
    }
    ranges
}

/// Linux adds memory in pieces of this size, or of a multiple of it, and pluggable memory consists of whole ones.
pub const PLUGGABLE_UNIT: u64 = 128 << 20;

/// The largest multiple that Linux chooses, for guests of 64 GiB and more.
const MAX_PLUGGABLE_UNIT: u64 = 2 << 30;

/// Where memory can be plugged in a guest that boots with `size` bytes of RAM.
#[must_use]
pub fn pluggable_start(size: u64) -> GuestAddress {
    let end = memory_ranges(size).last().map_or(0, |(start, length)| start.0 + length);
    GuestAddress(end.max(HOLE_END).next_multiple_of(MAX_PLUGGABLE_UNIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start and length of everything that has a fixed place.
    fn fixed() -> Vec<(u64, u64)> {
        vec![
            (PVH_START_INFO.0, 56),
            (PVH_MODULES.0, 32),
            (PVH_MEMORY_MAP.0, 24 * 8),
            (COMMAND_LINE.0, COMMAND_LINE_SIZE as u64),
            (MP_FLOATING_POINTER.0, 16),
            (MP_TABLE.0, HIGH_MEMORY_START - MP_TABLE.0),
            (HIGH_MEMORY_START, HOLE_START - HIGH_MEMORY_START),
            (VIRTIO_MMIO_START, VIRTIO_MMIO_SIZE * u64::from(MAX_VIRTIO_DEVICES)),
            (u64::from(IO_APIC), 0x1000),
            (u64::from(LOCAL_APIC), 0x1000),
            (KVM_IDENTITY_MAP, 0x1000),
            (KVM_TSS, 0x3000),
            (HOLE_END, 1),
        ]
    }

    #[test]
    fn nothing_overlaps() {
        let mut places = fixed();
        places.sort_unstable();
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{:#x} overlaps {:#x}", pair[0].0, pair[1].0);
        }
    }

    #[test]
    fn devices_lie_in_the_hole() {
        for (start, length) in fixed().into_iter().filter(|(start, _)| (HOLE_START..HOLE_END).contains(start)) {
            assert!(start + length <= HOLE_END);
        }
    }

    #[test]
    fn memory_goes_on_behind_the_hole() {
        assert_eq!(memory_ranges(64 << 20), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(memory_ranges(3 << 30), [(GuestAddress(0), 3 << 30)]);
        assert_eq!(memory_ranges(5 << 30), [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 2 << 30)]);
    }
    #[test]
    fn memory_is_plugged_behind_all_else() {
        assert_eq!(pluggable_start(64 << 20), GuestAddress(4 << 30));
        assert_eq!(pluggable_start(3 << 30), GuestAddress(4 << 30));
        assert_eq!(pluggable_start((3 << 30) + (1 << 20)), GuestAddress(6 << 30));
        assert_eq!(pluggable_start(5 << 30), GuestAddress(6 << 30));
    }
}
