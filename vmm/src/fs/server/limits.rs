//! How many file descriptors a server may hold.

use rustix::process::Resource;

/// The descriptors that are kept for everything but inodes and file handles: devices, connections, and what a request
/// opens while it is served. With a low limit it is a quarter of it.
const RESERVE: u64 = 4096;

/// The most inodes and file handles that a server may hold. Both need file descriptors of the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// The most inodes that the guest can look up without forgetting any.
    pub inodes: usize,
    /// The most files and directories that the guest can have open.
    pub handles: usize,
}

impl Limits {
    /// Divides the process's limit of open file descriptors, which the runtime has set.
    #[must_use]
    pub fn of_process() -> Self {
        Self::divide(rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(1 << 20))
    }

    /// Divides `limit` descriptors. An inode needs one. A handle needs two: that of the open file, and that of its inode,
    /// which the guest can forget meanwhile.
    fn divide(limit: u64) -> Self {
        let shared = limit - RESERVE.min(limit / 4);
        let number = |count| usize::try_from(count).unwrap_or(usize::MAX);
        Self { inodes: number(shared / 2), handles: number(shared / 4) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_left_for_the_rest_of_the_process() {
        for limit in [0, 3, 1024, 20_000, 1 << 20] {
            let Limits { inodes, handles } = Limits::divide(limit);
            let used = u64::try_from(inodes + 2 * handles).unwrap();
            assert!(used + RESERVE.min(limit / 4) <= limit, "{limit}");
            assert!(used >= limit / 2, "{limit}: {used}");
        }
        assert_eq!(Limits::divide(1 << 20), Limits { inodes: 522_240, handles: 261_120 });
    }
}
