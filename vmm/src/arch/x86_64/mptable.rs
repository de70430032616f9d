//! MPTable: describes the processors, the I/O APIC and the interrupt lines to the guest (Intel MultiProcessor Specification
//! 1.4, chapter 4). It is the smallest description that Linux accepts without ACPI.

use super::layout;

const SPECIFICATION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const ISA_BUS: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;
const TIMER_LINE: u8 = 0;
const HEADER_LENGTH: usize = 44;
const CHECKSUM_OFFSET: usize = 7;

/// Interrupt types of interrupt assignment entries (table 4-11).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// CPUID values of a processor entry (section 4.3.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct ProcessorId {
    /// Stepping, model and family: EAX of CPUID leaf 1.
    pub(super) signature: u32,
    /// EDX of CPUID leaf 1.
    pub(super) features: u32,
}

/// The floating pointer structure of a table at [`layout::MP_TABLE`] (section 4.1).
pub(super) fn floating_pointer() -> [u8; 16] {
    let mut pointer = [0; 16];
    pointer[0..4].copy_from_slice(b"_MP_");
    let table = u32::try_from(layout::MP_TABLE.0).expect("the table lies below 1 MiB");
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = 1; // length in paragraphs of 16 bytes
    pointer[9] = SPECIFICATION;
    pointer[10] = checksum(&pointer);
    pointer
}

/// The configuration table for `vcpus` processors with APIC ids from 0, of which the first is the bootstrap processor. It has
/// entries only for the interrupt lines in use, which are those of the timer and of `devices` virtio devices: Linux programs
/// each line in the table, which costs exits.
pub(super) fn table(vcpus: u8, devices: u8, id: ProcessorId) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries = Entries::default();
    for cpu in 0..vcpus {
        entries.processor(cpu, id);
    }
    entries.add([1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = layout::IO_APIC.to_le_bytes();
    entries.add([2, io_apic_id, IO_APIC_VERSION, 1, a, b, c, d]);
    let virtio = layout::FIRST_VIRTIO_IRQ..layout::FIRST_VIRTIO_IRQ + devices;
    for line in std::iter::once(TIMER_LINE).chain(virtio) {
        entries.add([3, INT, 0, 0, ISA_BUS, line, io_apic_id, line]);
    }
    entries.add([4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    entries.add([4, NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);
    entries.into_table()
}

#[derive(Default)]
struct Entries {
    bytes: Vec<u8>,
    count: u16,
}

impl Entries {
    fn add<const N: usize>(&mut self, entry: [u8; N]) {
        self.bytes.extend_from_slice(&entry);
        self.count += 1;
    }

    fn processor(&mut self, cpu: u8, id: ProcessorId) {
        let enabled_and_boots = if cpu == 0 { 0b11 } else { 0b01 };
        let mut entry = [0; 20];
        entry[0..4].copy_from_slice(&[0, cpu, LOCAL_APIC_VERSION, enabled_and_boots]);
        entry[4..8].copy_from_slice(&id.signature.to_le_bytes());
        entry[8..12].copy_from_slice(&id.features.to_le_bytes());
        self.add(entry);
    }

    /// Adds the header (section 4.2) before the entries.
    fn into_table(self) -> Vec<u8> {
        let length = u16::try_from(HEADER_LENGTH + self.bytes.len()).expect("64 processors need less than 2 KiB");
        let mut table = Vec::with_capacity(usize::from(length));
        table.extend_from_slice(b"PCMP");
        table.extend_from_slice(&length.to_le_bytes());
        table.extend_from_slice(&[SPECIFICATION, 0]);
        table.extend_from_slice(b"VMRT    MICROVM     ");
        table.extend_from_slice(&[0; 6]); // no OEM table
        table.extend_from_slice(&self.count.to_le_bytes());
        table.extend_from_slice(&layout::LOCAL_APIC.to_le_bytes());
        table.extend_from_slice(&[0; 4]); // no extended table
        table.extend_from_slice(&self.bytes);
        table[CHECKSUM_OFFSET] = checksum(&table);
        table
    }
}

/// The byte that makes the sum of all bytes 0, modulo 256.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ProcessorId = ProcessorId { signature: 0x00a2_0f12, features: 0x178b_fbff };

    #[test]
    fn checksums_are_correct() {
        assert_eq!(checksum(&floating_pointer()), 0);
        for vcpus in [1, 2, 64] {
            assert_eq!(checksum(&table(vcpus, 3, ID)), 0);
        }
    }

    #[test]
    fn the_header_has_the_length_and_the_number_of_entries() {
        let table = table(64, layout::MAX_VIRTIO_DEVICES, ID);
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        let mut offset = HEADER_LENGTH;
        let mut count = 0;
        while offset < table.len() {
            offset += if table[offset] == 0 { 20 } else { 8 };
            count += 1;
        }
        assert_eq!(offset, table.len());
        assert_eq!(u16::from_le_bytes([table[34], table[35]]), count);
        assert_eq!(u32::from_le_bytes(table[36..40].try_into().unwrap()), layout::LOCAL_APIC);
        let room = layout::HIGH_MEMORY_START - layout::MP_TABLE.0;
        assert!(u64::try_from(table.len()).unwrap() <= room);
    }

    #[test]
    fn only_the_first_processor_is_the_bootstrap_processor() {
        let table = table(3, 1, ID);
        let flags: Vec<u8> = (0..3).map(|cpu| table[HEADER_LENGTH + cpu * 20 + 3]).collect();
        assert_eq!(flags, [0b11, 0b01, 0b01]);
        assert_eq!(table[HEADER_LENGTH + 2 * 20 + 1], 2);
    }
}
