//! A sandbox's configuration after it was checked: every file in it is open.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::{MAX_VCPUS, MIN_MEMORY_MIB, SandboxConfig};
use crate::net::MAX_SLOTS;

const MIB: u64 = 1 << 20;

/// What a machine is built from.
#[derive(Debug)]
pub struct Resources {
    /// The kernel and where it was.
    pub kernel: OpenFile,
    /// The initramfs and where it was.
    pub initramfs: OpenFile,
    /// Guest RAM in bytes.
    pub memory_size: u64,
    /// Most bytes of RAM the guest may be given while it runs: the host's.
    pub memory_most: u64,
    /// What the host lets one of its processes allocate at once, in bytes: all of its memory and swap.
    pub overcommit_most: u64,
    /// Number of vCPUs, 1 to 64.
    pub vcpus: u8,
    /// Most vCPUs it may be given while it runs; not less than `vcpus`.
    pub vcpus_most: u8,
    /// Number of network devices.
    pub network_slots: u8,
    /// Open for appending.
    pub console_log: Option<File>,
}

/// A file that is open for reading.
#[derive(Debug)]
pub struct OpenFile {
    /// For errors.
    pub path: PathBuf,
    /// The file.
    pub file: File,
    /// Its length in bytes when it was opened; not 0.
    pub length: u64,
}

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum ResourcesError {
    /// A machine needs a vCPU, and Linux is told of at most so many.
    #[error("a guest has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u8),
    /// There are only so many interrupt lines.
    #[error("a guest has at most {MAX_SLOTS} network devices, {0} were asked for")]
    NetworkSlots(u8),
    /// Linux and the agent do not boot in less.
    #[error("a guest needs at least {MIN_MEMORY_MIB} MiB of memory, {0} MiB were asked for")]
    MemoryTooSmall(u64),
    /// The host has less.
    #[error("{asked} MiB of guest memory were asked for, this host has {host} MiB")]
    MemoryTooLarge {
        /// MiB asked for.
        asked: u64,
        /// MiB the host has.
        host: u64,
    },
    /// A file cannot be opened.
    #[error("cannot open the {what} {}", path.display())]
    Open {
        /// What the file is.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is of the wrong type.
    #[error("the {what} {} is not a regular file", path.display())]
    NotAFile {
        /// What the file is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// A file is empty.
    #[error("the {what} {} is empty", path.display())]
    Empty {
        /// What the file is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// The host does not say how much memory it has.
    #[error("cannot find out how much memory this host has")]
    HostMemory(#[source] nix::Error),
}

impl Resources {
    /// Checks `config` and opens its files.
    ///
    /// # Errors
    /// The first thing that is wrong, with the file's name and the cause.
    pub fn open(config: &SandboxConfig) -> Result<Self, ResourcesError> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            return Err(ResourcesError::Vcpus(config.vcpus));
        }
        if config.network_slots > MAX_SLOTS {
            return Err(ResourcesError::NetworkSlots(config.network_slots));
        }
        let info = nix::sys::sysinfo::sysinfo().map_err(ResourcesError::HostMemory)?;
        let host = info.ram_total() / MIB;
        Ok(Self {
            memory_size: memory_size(config.memory_mib, host)?,
            memory_most: host * MIB,
            overcommit_most: info.ram_total() + info.swap_total(),
            vcpus: config.vcpus,
            vcpus_most: config.vcpus_most.clamp(config.vcpus, MAX_VCPUS),
            network_slots: config.network_slots,
            kernel: OpenFile::open("guest kernel", &config.kernel)?,
            initramfs: OpenFile::open("initramfs", &config.initramfs)?,
            console_log: config.console_log.as_deref().map(open_console_log).transpose()?,
        })
    }
}

impl OpenFile {
    fn open(what: &'static str, path: &Path) -> Result<Self, ResourcesError> {
        let fail = |source| ResourcesError::Open { what, path: path.to_owned(), source };
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(ResourcesError::NotAFile { what, path: path.to_owned() });
        }
        if metadata.len() == 0 {
            return Err(ResourcesError::Empty { what, path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), file, length: metadata.len() })
    }
}

fn open_console_log(path: &Path) -> Result<File, ResourcesError> {
    let open = File::options().append(true).create(true).open(path);
    open.map_err(|source| ResourcesError::Open { what: "console log", path: path.to_owned(), source })
}

fn memory_size(asked: u64, host: u64) -> Result<u64, ResourcesError> {
    if asked < MIN_MEMORY_MIB {
        return Err(ResourcesError::MemoryTooSmall(asked));
    }
    if asked > host { Err(ResourcesError::MemoryTooLarge { asked, host }) } else { Ok(asked * MIB) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path) -> SandboxConfig {
        let file = |name: &str| {
            let path = directory.join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        SandboxConfig {
            kernel: file("vmlinux"),
            initramfs: file("initramfs.cpio"),
            memory_mib: 64,
            vcpus: 1,
            vcpus_most: 3,
            has_cgroup: false,
            network_slots: 0,
            follow_interfaces: Vec::new(),
            control_socket: directory.join("control.sock"),
            console_log: Some(directory.join("console")),
            main_container: "web".to_owned(),
        }
    }

    fn error(change: impl FnOnce(&Path, &mut SandboxConfig)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        change(directory.path(), &mut config);
        let text = Resources::open(&config).unwrap_err().to_string();
        text.replace(directory.path().to_str().unwrap(), "DIR")
    }

    #[test]
    fn a_good_configuration_has_every_file_open() {
        let directory = tempfile::tempdir().unwrap();
        let resources = Resources::open(&config(directory.path())).unwrap();
        assert!(resources.memory_most > resources.memory_size);
        assert_eq!((resources.memory_size, resources.kernel.length, resources.initramfs.length), (64 << 20, 7, 14));
        assert_eq!((resources.vcpus, resources.vcpus_most), (1, 3));
        assert!(resources.console_log.is_some() && directory.path().join("console").exists());
    }

    #[test]
    fn a_machine_can_have_the_vcpus_it_has_and_no_more_than_linux_knows() {
        let directory = tempfile::tempdir().unwrap();
        let most = |vcpus, vcpus_most| {
            let config = SandboxConfig { vcpus, vcpus_most, ..config(directory.path()) };
            Resources::open(&config).unwrap().vcpus_most
        };
        assert_eq!((most(2, 0), most(2, 8), most(1, 200)), (2, 8, 64));
    }

    #[test]
    fn each_mistake_is_named() {
        assert_eq!(error(|_, config| config.vcpus = 0), "a guest has 1 to 64 vCPUs, not 0");
        assert_eq!(error(|_, config| config.vcpus = 65), "a guest has 1 to 64 vCPUs, not 65");
        let small = error(|_, config| config.memory_mib = 63);
        assert_eq!(small, "a guest needs at least 64 MiB of memory, 63 MiB were asked for");
        let large = error(|_, config| config.memory_mib = u64::MAX);
        assert!(large.starts_with("18446744073709551615 MiB of guest memory were asked for, this host has"), "{large}");
        let missing = error(|directory, config| config.kernel = directory.join("none"));
        assert_eq!(missing, "cannot open the guest kernel DIR/none");
        let directory = error(|directory, config| directory.clone_into(&mut config.initramfs));
        assert_eq!(directory, "the initramfs DIR is not a regular file");
        let empty = error(|_, config| std::fs::write(&config.initramfs, "").unwrap());
        assert_eq!(empty, "the initramfs DIR/initramfs.cpio is empty");
        let log = error(|directory, config| config.console_log = Some(directory.join("no/log")));
        assert_eq!(log, "cannot open the console log DIR/no/log");
    }
}
