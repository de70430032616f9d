//! The guest-physical addresses and the interrupt lines of the machine.
//!
//! ```text
//! 0x0000_0000  RAM       0x0000_6000  PVH start information
//!                        0x0002_0000  kernel command line
//! 0x0009_fc00  reserved  0x0009_fc00  MP floating pointer
//!                        0x000f_0000  MP configuration table
//! 0x0010_0000  RAM       0x0100_0000  kernel, at the addresses of its program headers; initramfs at the end of this range
//! 0xc000_0000  devices   0xd000_0000  virtio-mmio, one page each
//!                        0xfec0_0000  I/O APIC
//!                        0xfee0_0000  local APICs
//!                        0xfffb_c000  pages that KVM uses itself
//! 0x1_0000_0000  RAM above 4 GiB; after it, aligned, the pluggable memory
//! ```

use vm_memory::GuestAddress;

/// PVH start information (`hvm_start_info`).
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);

/// PVH module list, whose only entry is the initramfs.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6100);

/// PVH memory map.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x7000);

/// Kernel command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);

/// Most bytes of the command line that Linux keeps (its `COMMAND_LINE_SIZE`), including the NUL.
pub const COMMAND_LINE_SIZE: usize = 2048;

/// End of the base memory. Linux searches the last KiB of the first 640 KiB for an MP floating pointer early in the boot.
pub const BASE_MEMORY_END: u64 = 0x9_fc00;

/// MP floating pointer structure.
pub const MP_FLOATING_POINTER: GuestAddress = GuestAddress(BASE_MEMORY_END);

/// MP configuration table, in the area of a BIOS: the entries of 64 processors do not fit after the floating pointer.
pub const MP_TABLE: GuestAddress = GuestAddress(0xf_0000);

/// Start of the RAM above the legacy area.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// Start of the addresses below 4 GiB that are not RAM.
pub const HOLE_START: u64 = 0xc000_0000;

/// End of these addresses, and start of the RAM that does not fit below them.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Registers of the first virtio-mmio device.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;

/// Size of a virtio-mmio device's registers in bytes: one page.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;

/// I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;

/// Local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// A page that KVM uses on Intel processors without unrestricted guest mode (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Three pages that KVM uses on the same processors (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// First interrupt line of the virtio devices. Those below belong to the PIT, the PIC cascade and COM1.
pub const FIRST_VIRTIO_IRQ: u8 = 5;

/// Number of lines of the I/O APIC.
const IO_APIC_LINES: u8 = 24;

/// Most virtio devices: one for each remaining interrupt line.
pub const MAX_VIRTIO_DEVICES: u8 = IO_APIC_LINES - FIRST_VIRTIO_IRQ;

/// I/O port of the serial port COM1.
pub const COM1: u16 = 0x3f8;

/// Number of COM1's ports.
pub const COM1_PORTS: u16 = 8;

/// Command and status port of the keyboard controller.
pub const KEYBOARD_CONTROLLER: u16 = 0x64;

/// The keyboard controller's command that pulls the processor's reset line.
pub const KEYBOARD_CONTROLLER_RESET: u8 = 0xfe;

/// Address and interrupt line of each virtio-mmio device, in the order of the devices.
pub fn virtio_mmio_devices() -> impl Iterator<Item = (u64, u32)> {
    (0..MAX_VIRTIO_DEVICES).map(|index| {
        let address = VIRTIO_MMIO_START + u64::from(index) * VIRTIO_MMIO_SIZE;
        (address, u32::from(FIRST_VIRTIO_IRQ + index))
    })
}

/// The ranges of guest memory of `size` bytes, each as start and length in bytes.
#[must_use]
pub fn memory_ranges(size: u64) -> Vec<(GuestAddress, u64)> {
    let low = size.min(HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if size > low {
        ranges.push((GuestAddress(HOLE_END), size - low));
    }
    ranges
}

/// Size of a memory block of Linux in bytes, or a divisor of it. The size of the pluggable memory is a multiple of it.
pub const PLUGGABLE_UNIT: u64 = 128 << 20;

/// The largest memory block in bytes, which Linux chooses for guests with at least 64 GiB.
const MAX_PLUGGABLE_UNIT: u64 = 2 << 30;

/// Start of the pluggable memory of a guest that boots with `size` bytes.
#[must_use]
pub fn pluggable_start(size: u64) -> GuestAddress {
    let end = memory_ranges(size).last().map_or(0, |(start, length)| start.0 + length);
    GuestAddress(end.max(HOLE_END).next_multiple_of(MAX_PLUGGABLE_UNIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start and length of everything with a fixed address.
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
    fn fixed_addresses_do_not_overlap() {
        let mut places = fixed();
        places.sort_unstable();
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{:#x} overlaps {:#x}", pair[0].0, pair[1].0);
        }
    }

    #[test]
    fn devices_are_within_the_hole() {
        for (start, length) in fixed().into_iter().filter(|(start, _)| (HOLE_START..HOLE_END).contains(start)) {
            assert!(start + length <= HOLE_END);
        }
    }

    #[test]
    fn memory_continues_after_the_hole() {
        assert_eq!(memory_ranges(64 << 20), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(memory_ranges(3 << 30), [(GuestAddress(0), 3 << 30)]);
        assert_eq!(memory_ranges(5 << 30), [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 2 << 30)]);
    }

    #[test]
    fn pluggable_memory_follows_all_other_memory() {
        assert_eq!(pluggable_start(64 << 20), GuestAddress(4 << 30));
        assert_eq!(pluggable_start(3 << 30), GuestAddress(4 << 30));
        assert_eq!(pluggable_start((3 << 30) + (1 << 20)), GuestAddress(6 << 30));
        assert_eq!(pluggable_start(5 << 30), GuestAddress(6 << 30));
    }
}
