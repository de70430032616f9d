//! Numbers of the devices that the guest has.

/// Character devices whose node in the guest serves the same purpose as on the host.
const DEVICES: [(u64, u64); 14] = [
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (1, 11),   // kmsg
    (5, 0),    // tty
    (10, 183), // hwrng
    (10, 200), // net/tun
    (10, 203), // cuse
    (10, 229), // fuse
    (10, 235), // autofs
    (10, 236), // mapper/control
    (10, 237), // loop-control
];

/// The major number of loop devices. The guest has its own.
const LOOP_MAJOR: u64 = 7;

/// `/dev/console` and `/dev/ptmx`.
const TERMINALS: [(u64, u64); 2] = [(5, 1), (5, 2)];

/// Whether a device of the guest can replace this character device of the host.
pub(crate) fn has_guest_equivalent(major: u64, minor: u64) -> bool {
    DEVICES.contains(&(major, minor))
}

/// Whether the guest can have a node of this character device. This includes terminals, whose nodes the guest creates itself.
pub(crate) fn is_guest_device(major: u64, minor: u64) -> bool {
    has_guest_equivalent(major, minor) || TERMINALS.contains(&(major, minor))
}

/// Whether `major` is the major number of loop devices.
pub(crate) fn is_loop(major: u64) -> bool {
    major == LOOP_MAJOR
}
