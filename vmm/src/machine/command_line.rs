//! The guest kernel's command line.

use std::ffi::CString;
use std::fmt::Write as _;

use crate::arch::layout;

/// What every guest gets.
///
/// A panic or a reboot resets the processor at once, which ends the machine. The kernel prints to COM1 without a driver;
/// even a quiet kernel prints its panic. Only the first processor comes up during boot, the agent brings up the others.
/// Memory that is plugged in is used at once, and only for what can be moved out of it again, up to the ratio that Linux
/// thinks good.
const ALWAYS: &str = "panic=-1 reboot=k,force earlyprintk=serial,ttyS0,115200,keep maxcpus=1 \
     tsc=reliable no_timer_check cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1 \
     memhp_default_state=online memory_hotplug.online_policy=auto-movable";

/// Messages are only worth their time when somebody reads them: each byte is two exits.
const QUIET: &str = "quiet loglevel=1";
const VERBOSE: &str = "loglevel=7";

/// The command line of a machine with `devices` virtio-mmio devices, whose processes may allocate `overcommit_most` bytes at
/// once as on the host, though the machine has less memory so far (`guest-kernel-config/patches/overcommit.patch`).
#[must_use]
pub fn build(devices: usize, overcommit_most: u64, verbose: bool) -> CString {
    // The level comes first: the console, once it is named, prints everything of that level since the kernel's start.
    let mut line = format!("{} {ALWAYS}", if verbose { VERBOSE } else { QUIET });
    write!(line, " overcommit_guess={overcommit_most}").expect("a string takes it");
    for (address, irq) in places().take(devices) {
        write!(line, " virtio_mmio.device={}@{address:#x}:{irq}", layout::VIRTIO_MMIO_SIZE).expect("a string takes it");
    }
    CString::new(line).expect("no NUL in it")
}

/// Address and interrupt line of each virtio-mmio device, in order.
pub(super) fn places() -> impl Iterator<Item = (u64, u32)> {
    (0..layout::MAX_VIRTIO_DEVICES).map(|index| {
        let address = layout::VIRTIO_MMIO_START + u64::from(index) * layout::VIRTIO_MMIO_SIZE;
        (address, u32::from(layout::FIRST_VIRTIO_IRQ + index))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_is_named_with_its_place() {
        let line = build(2, 1 << 34, false).into_string().unwrap();
        assert!(line.ends_with(" overcommit_guess=17179869184 virtio_mmio.device=4096@0xd0000000:5 virtio_mmio.device=4096@0xd0001000:6"), "{line}");
        assert!(line.starts_with("quiet loglevel=1 "));
    }

    #[test]
    fn a_verbose_kernel_is_not_quiet() {
        let line = build(0, 0, true).into_string().unwrap();
        assert!(line.starts_with("loglevel=7 ") && !line.contains("quiet"), "{line}");
    }

    #[test]
    fn it_fits_with_every_device() {
        let most = usize::from(layout::MAX_VIRTIO_DEVICES);
        assert!(build(most, u64::MAX, true).as_bytes_with_nul().len() <= layout::COMMAND_LINE_SIZE);
        assert_eq!(build(most, u64::MAX, true), build(most + 1, u64::MAX, true));
    }
}
