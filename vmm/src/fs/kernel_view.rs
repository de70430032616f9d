//! File systems whose files are a view of the host's kernel, not data that is stored.
//!
//! They show, and some of them change, what the whole host does: its processes and their memory, its devices, its
//! cgroups. The guest's kernel has file systems of the same kinds for its own state. So the host's are not served.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// The file system types, by the magic number that `statfs(2)` reports.
const KINDS: [(u32, &str); 29] = [
    (0x0000_9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0xcafe_4a11, "bpffs"),
    (0x7363_6673, "securityfs"),
    (0x5a3c_69f0, "apparmorfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x6265_6570, "configfs"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x6573_5543, "fusectl"),
    (0x0765_5821, "resctrl"),
    (0x6e73_6673, "nsfs"),
    (0x5049_4446, "pidfs"),
    (0x1980_0202, "mqueue"),
    (0x0000_1cd1, "devpts"),
    (0x6c6f_6f70, "binder"),
    (0x6e66_7364, "nfsd"),
    (0x6759_6969, "rpc_pipefs"),
    (0xabba_1974, "xenfs"),
    (0x0000_9fa2, "usbfs"),
    (0x0a64_7361, "functionfs"),
    (0xaee7_1ee7, "gadgetfs"),
    (0x76a9_f425, "ocfs2_dlmfs"),
];

/// The type of the file system of `file`, which may be an `O_PATH` descriptor, if it is a view of the host's kernel.
///
/// # Errors
/// The error of `fstatfs(2)`.
pub fn kernel_view(file: impl AsFd) -> Result<Option<&'static str>, Errno> {
    let magic = match rustix::fs::fstatfs(file) {
        // The number has 32 bits, and the field is wider.
        Ok(status) => status.f_type & 0xffff_ffff,
        // Only a file system in user space can lack the answer.
        Err(Errno::NOSYS) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    Ok(KINDS.iter().find(|(kind, _)| i64::from(*kind) == magic).map(|(_, name)| *name))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    fn kind_of(path: &str) -> Option<&'static str> {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        kernel_view(file).unwrap()
    }

    #[test]
    fn views_of_the_kernel_are_found_by_their_file_system() {
        assert_eq!(kind_of("/proc"), Some("proc"));
        assert_eq!(kind_of("/proc/self/status"), Some("proc"));
        assert_eq!(kind_of("/proc/self/ns/net"), Some("nsfs"));
        assert_eq!(kind_of("/sys/kernel"), Some("sysfs"));
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(kind_of(directory.path().to_str().unwrap()), None);
    }
}
