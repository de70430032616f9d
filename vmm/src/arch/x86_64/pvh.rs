//! PVH boot parameters: the start information for the kernel's PVH entry (Xen's `public/arch-x86/hvm/start_info.h`).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams, Error};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};

use super::layout;
use crate::arch::Memory;

const START_MAGIC: u32 = 0x336e_c578;
const VERSION_WITH_MEMORY_MAP: u32 = 1;
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Address and size in bytes of the initramfs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Module {
    pub(super) start: u64,
    pub(super) size: u64,
}

/// Writes the start information for a guest with `memory_size` bytes of memory.
pub(super) fn write(memory: &Memory, memory_size: u64, initramfs: Module) -> Result<(), Error> {
    let map = memory_map(memory_size);
    let start_info = hvm_start_info {
        magic: START_MAGIC,
        version: VERSION_WITH_MEMORY_MAP,
        nr_modules: 1,
        modlist_paddr: layout::PVH_MODULES.0,
        cmdline_paddr: layout::COMMAND_LINE.0,
        memmap_paddr: layout::PVH_MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).expect("a map of four entries"),
        ..Default::default()
    };
    let module = hvm_modlist_entry { paddr: initramfs.start, size: initramfs.size, ..Default::default() };
    let mut params = BootParams::new(&start_info, layout::PVH_START_INFO);
    params.set_sections(&map, layout::PVH_MEMORY_MAP);
    params.set_modules(&[module], layout::PVH_MODULES);
    PvhBootConfigurator::write_bootparams(&params, memory)
}

fn memory_map(memory_size: u64) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, end: u64, type_| hvm_memmap_table_entry { addr, size: end - addr, type_, reserved: 0 };
    let mut map = vec![
        entry(0, layout::BASE_MEMORY_END, RAM),
        entry(layout::BASE_MEMORY_END, layout::HIGH_MEMORY_START, RESERVED),
    ];
    for (start, length) in layout::memory_ranges(memory_size) {
        map.push(entry(start.0.max(layout::HIGH_MEMORY_START), start.0 + length, RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_has_all_memory_but_the_legacy_area() {
        for size in [64 << 20, 512 << 20, 3 << 30, 7 << 30] {
            let ram: u64 = memory_map(size).iter().filter(|entry| entry.type_ == RAM).map(|entry| entry.size).sum();
            assert_eq!(ram, size - (layout::HIGH_MEMORY_START - layout::BASE_MEMORY_END));
        }
    }

    #[test]
    fn the_map_is_sorted_and_does_not_overlap() {
        for pair in memory_map(8 << 30).windows(2) {
            assert!(pair[0].addr + pair[0].size <= pair[1].addr);
        }
    }
}
