//! The checked configuration of a machine, with open files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::{MAX_VCPUS, MIN_MEMORY_MIB, SandboxConfig};
use crate::net::MAX_SLOTS;

const MIB: u64 = 1 << 20;

/// The resources that a machine is built from.
#[derive(Debug)]
pub struct Resources {
    /// The kernel, an uncompressed ELF file.
    pub kernel: OpenFile,
    /// The initramfs, an uncompressed cpio archive.
    pub initramfs: OpenFile,
    /// Guest memory at boot in bytes.
    pub memory_size: u64,
    /// Most guest memory at run time in bytes: the host's memory.
    pub max_memory_size: u64,
    /// Most bytes that one process of the host may allocate at once: the host's memory and swap.
    pub max_allocation: u64,
    /// Number of vCPUs at boot, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Most vCPUs at run time; at least `vcpus`.
    pub max_vcpus: u8,
    /// Number of network devices.
    pub network_slots: u8,
    /// The console log, open for appending.
    pub console_log: Option<File>,
}

/// A file that is open for reading.
#[derive(Debug)]
pub struct OpenFile {
    /// Its path, for errors.
    pub path: PathBuf,
    /// The open file.
    pub file: File,
    /// Its length in bytes when it was opened; at least 1.
    pub length: u64,
}

/// Why a configuration is invalid.
#[derive(Debug, Error)]
pub enum ResourcesError {
    /// The number of vCPUs is not 1 to [`MAX_VCPUS`].
    #[error("a guest has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u8),
    /// More network devices than there are interrupt lines for.
    #[error("a guest has at most {MAX_SLOTS} network devices, {0} were asked for")]
    NetworkSlots(u8),
    /// The memory is too small to boot Linux and the agent.
    #[error("a guest needs at least {MIN_MEMORY_MIB} MiB of memory, {0} MiB were asked for")]
    MemoryTooSmall(u64),
    /// The host has less memory.
    #[error("{asked} MiB of guest memory were asked for, this host has {host} MiB")]
    MemoryTooLarge {
        /// The memory asked for in MiB.
        asked: u64,
        /// The host's memory in MiB.
        host: u64,
    },
    /// A file cannot be opened.
    #[error("cannot open the {kind} {}", path.display())]
    Open {
        /// The kind of the file.
        kind: &'static str,
        /// The configured path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A path leads to something else than a regular file.
    #[error("the {kind} {} is not a regular file", path.display())]
    NotAFile {
        /// The kind of the file.
        kind: &'static str,
        /// The configured path.
        path: PathBuf,
    },
    /// A file is empty.
    #[error("the {kind} {} is empty", path.display())]
    Empty {
        /// The kind of the file.
        kind: &'static str,
        /// The configured path.
        path: PathBuf,
    },
    /// `sysinfo` failed.
    #[error("cannot determine how much memory this host has")]
    HostMemory(#[source] nix::Error),
}

impl Resources {
    /// Checks `config` and opens its files.
    ///
    /// # Errors
    /// The first invalid value, or the first file that cannot be opened, with its path and the cause.
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
            max_memory_size: host * MIB,
            max_allocation: info.ram_total() + info.swap_total(),
            vcpus: config.vcpus,
            max_vcpus: config.max_vcpus.clamp(config.vcpus, MAX_VCPUS),
            network_slots: config.network_slots,
            kernel: OpenFile::open("guest kernel", &config.kernel)?,
            initramfs: OpenFile::open("initramfs", &config.initramfs)?,
            console_log: config.console_log.as_deref().map(open_console_log).transpose()?,
        })
    }
}

impl OpenFile {
    fn open(kind: &'static str, path: &Path) -> Result<Self, ResourcesError> {
        let fail = |source| ResourcesError::Open { kind, path: path.to_owned(), source };
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(ResourcesError::NotAFile { kind, path: path.to_owned() });
        }
        if metadata.len() == 0 {
            return Err(ResourcesError::Empty { kind, path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), file, length: metadata.len() })
    }
}

fn open_console_log(path: &Path) -> Result<File, ResourcesError> {
    let open = File::options().append(true).create(true).open(path);
    open.map_err(|source| ResourcesError::Open { kind: "console log", path: path.to_owned(), source })
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
            max_vcpus: 3,
            has_cgroup: false,
            network_slots: 0,
            interface_change_command: Vec::new(),
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
    fn a_valid_configuration_opens_every_file() {
        let directory = tempfile::tempdir().unwrap();
        let resources = Resources::open(&config(directory.path())).unwrap();
        assert!(resources.max_memory_size > resources.memory_size);
        assert_eq!((resources.memory_size, resources.kernel.length, resources.initramfs.length), (64 << 20, 7, 14));
        assert_eq!((resources.vcpus, resources.max_vcpus), (1, 3));
        assert!(resources.console_log.is_some() && directory.path().join("console").exists());
    }

    #[test]
    fn the_maximum_of_vcpus_is_between_those_at_boot_and_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let max_vcpus = |vcpus, max_vcpus| {
            let config = SandboxConfig { vcpus, max_vcpus, ..config(directory.path()) };
            Resources::open(&config).unwrap().max_vcpus
        };
        assert_eq!((max_vcpus(2, 0), max_vcpus(2, 8), max_vcpus(1, 200)), (2, 8, 64));
    }

    #[test]
    fn errors_name_the_invalid_value() {
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
