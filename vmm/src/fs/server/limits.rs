//! How many file descriptors a server may hold.

use rustix::process::{Resource, Rlimit};

/// The most descriptors that a process with a server gets. More inodes than this fit in no guest's cache.
const MOST: u64 = 1 << 20;
/// The share of the descriptors of the whole host (`fs.file-max`) that one process gets: one in this many.
const HOST_SHARE: u64 = 16;
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
    /// Sets the process's limit of open file descriptors, and divides it. The limit is the highest that the process may
    /// have, but at most 2^20, and at most a 16th of the host's descriptors.
    #[must_use]
    pub fn of_process() -> Self {
        let number = |path| std::fs::read_to_string(path).ok()?.trim().parse().ok();
        let most = most(number("/proc/sys/fs/nr_open"), number("/proc/sys/fs/file-max"));
        let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
        let set = |limit| {
            let rlimit = Rlimit { current: Some(limit), maximum: Some(limit) };
            rustix::process::setrlimit(Resource::Nofile, rlimit).is_ok()
        };
        let allowed = maximum.map_or(most, |maximum| most.min(maximum));
        // Only a privileged process can raise the hard limit.
        let limit = match [most, allowed].into_iter().find(|limit| set(*limit)) {
            Some(limit) => limit,
            None => current.unwrap_or(allowed),
        };
        Self::divide(limit)
    }

    /// Divides `limit` descriptors. An inode needs one. A handle needs two: that of the open file, and that of its inode,
    /// which the guest can forget meanwhile.
    fn divide(limit: u64) -> Self {
        let shared = limit - RESERVE.min(limit / 4);
        let number = |count| usize::try_from(count).unwrap_or(usize::MAX);
        Self { inodes: number(shared / 2), handles: number(shared / 4) }
    }
}

/// The limit to set, for these values of `fs.nr_open` and `fs.file-max`.
fn most(nr_open: Option<u64>, file_max: Option<u64>) -> u64 {
    let share = file_max.map(|all| all / HOST_SHARE);
    [nr_open, share].into_iter().flatten().fold(MOST, u64::min)
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

    #[test]
    fn one_process_gets_a_share_of_the_hosts_descriptors() {
        assert_eq!(most(Some(1 << 30), Some(i64::MAX.cast_unsigned())), 1 << 20, "as with systemd");
        assert_eq!(most(Some(1 << 20), Some(1_600_000)), 100_000);
        assert_eq!(most(Some(65_536), None), 65_536);
        assert_eq!(most(None, None), 1 << 20);
    }

    #[test]
    fn the_limit_of_the_process_is_set() {
        // Other tests need few descriptors, and the limit only ever becomes the same.
        let limits = Limits::of_process();
        let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap();
        assert_eq!(limits, Limits::divide(limit));
        assert!(limit <= MOST);
    }
}
