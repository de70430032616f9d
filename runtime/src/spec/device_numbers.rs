//! Numbers of devices that every kernel has, the guest's included.

/// Character devices that are the same in every Linux kernel, or are its own: null, zero, full, random, urandom, kmsg, tty; those that
/// give a process something new, tun, fuse and cuse; hwrng, autofs, and what makes loop devices and the device mapper's.
const DEVICES: [(u64, u64); 14] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (1, 11),
    (5, 0),
    (10, 183),
    (10, 200),
    (10, 203),
    (10, 229),
    (10, 235),
    (10, 236),
    (10, 237),
];

/// The major number of loop devices. The guest has its own.
const LOOP: u64 = 7;

/// The console and the multiplexer of pseudo-terminals.
const TERMINALS: [(u64, u64); 2] = [(5, 1), (5, 2)];

/// Whether the guest can stand in for a character device of the host with its own.
pub(crate) fn has_guest_equivalent(major: u64, minor: u64) -> bool {
    DEVICES.contains(&(major, minor))
}

/// Whether a guest can have a node of this character device: those above, and the terminals, whose nodes it makes itself.
pub(crate) fn is_guest_device(major: u64, minor: u64) -> bool {
    has_guest_equivalent(major, minor) || TERMINALS.contains(&(major, minor))
}

/// Whether it is the major number of loop devices.
pub(crate) fn is_loop(major: u64) -> bool {
    major == LOOP
}
