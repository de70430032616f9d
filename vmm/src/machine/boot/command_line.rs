//! The guest kernel's command line.

use std::ffi::CString;
use std::fmt::Write as _;

use crate::arch::layout;

/// Parameters of every guest:
/// - A panic or a reboot resets the processor at once, which ends the machine.
/// - The kernel prints to COM1 without a driver. Even a quiet kernel prints a panic.
/// - Only the first processor comes up during boot. The agent brings up the others.
/// - Plugged memory is onlined at once. Linux uses it for movable pages only, so that it can be unplugged, up to the ratio of
///   movable to kernel memory that Linux considers safe.
const ALWAYS: &str = "panic=-1 reboot=k,force earlyprintk=serial,ttyS0,115200,keep maxcpus=1 \
     tsc=reliable no_timer_check cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1 \
     memhp_default_state=online memory_hotplug.online_policy=auto-movable";

/// Without a console log nothing reads the messages, and each byte costs two exits.
const QUIET: &str = "quiet loglevel=1";
const VERBOSE: &str = "loglevel=7";

/// The command line of a machine with `devices` virtio-mmio devices.
///
/// `max_allocation` is the most bytes that one process may allocate at once, as on the host, although the machine may have
/// less memory at boot (`guest-kernel-config/patches/overcommit.patch`). A `verbose` kernel prints all messages.
#[must_use]
pub fn command_line(devices: usize, max_allocation: u64, verbose: bool) -> CString {
    // The log level comes first: as soon as the console parameter is parsed, the kernel prints all earlier messages of that
    // level.
    let mut line = format!("{} {ALWAYS}", if verbose { VERBOSE } else { QUIET });
    write!(line, " overcommit_guess={max_allocation}").expect("writing to a string does not fail");
    for (address, irq) in layout::virtio_mmio_devices().take(devices) {
        write!(line, " virtio_mmio.device={}@{address:#x}:{irq}", layout::VIRTIO_MMIO_SIZE)
            .expect("writing to a string does not fail");
    }
    CString::new(line).expect("no NUL in it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_its_address_and_interrupt_line() {
        let line = command_line(2, 1 << 34, false).into_string().unwrap();
        assert!(line.ends_with(" overcommit_guess=17179869184 virtio_mmio.device=4096@0xd0000000:5 virtio_mmio.device=4096@0xd0001000:6"), "{line}");
        assert!(line.starts_with("quiet loglevel=1 "));
    }

    #[test]
    fn a_verbose_kernel_is_not_quiet() {
        let line = command_line(0, 0, true).into_string().unwrap();
        assert!(line.starts_with("loglevel=7 ") && !line.contains("quiet"), "{line}");
    }

    #[test]
    fn it_fits_with_every_device() {
        let max = usize::from(layout::MAX_VIRTIO_DEVICES);
        assert!(command_line(max, u64::MAX, true).as_bytes_with_nul().len() <= layout::COMMAND_LINE_SIZE);
        assert_eq!(command_line(max, u64::MAX, true), command_line(max + 1, u64::MAX, true));
    }
}
