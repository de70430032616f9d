//! The checked configuration of a machine, with open files.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use thiserror::Error;

use crate::config::{MAX_VCPUS, MIN_MEMORY_MIB, SandboxConfig};
use crate::net::MAX_SLOTS;

const MIB: u64 = 1 << 20;

/// The resources that a machine is built from.
#[derive(Debug)]
pub struct Resources {
    /// The KVM device.
    pub kvm: OwnedFd,
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
    /// The empty file of a template that is to be made of the machine.
    pub new_template: Option<File>,
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
    /// The attributes of a file cannot be read.
    #[error("cannot examine the {kind} {}", path.display())]
    Examine {
        /// The kind of the file.
        kind: &'static str,
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A descriptor refers to something else than a regular file.
    #[error("the {kind} {} is not a regular file", path.display())]
    NotAFile {
        /// The kind of the file.
        kind: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// A file is empty.
    #[error("the {kind} {} is empty", path.display())]
    Empty {
        /// The kind of the file.
        kind: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// `sysinfo` failed.
    #[error("cannot determine how much memory this host has")]
    HostMemory(#[source] nix::Error),
}

impl Resources {
    /// Checks `config` and `files`. Only the files that a machine is built from are taken.
    ///
    /// # Errors
    /// The first invalid value, or the first file that is unusable, with its path.
    pub fn of(config: &SandboxConfig, files: MachineFiles) -> Result<Self, ResourcesError> {
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
            kvm: files.kvm,
            kernel: OpenFile::of("guest kernel", files.kernel)?,
            initramfs: OpenFile::of("initramfs", files.initramfs)?,
            console_log: files.console_log.map(File::from),
            new_template: files.new_template.map(File::from),
        })
    }
}

/// The open files that a machine is built from, see [`crate::config::SandboxFiles`].
#[derive(Debug)]
pub struct MachineFiles {
    /// The KVM device.
    pub kvm: OwnedFd,
    /// The kernel.
    pub kernel: OwnedFd,
    /// The initramfs.
    pub initramfs: OwnedFd,
    /// The console log.
    pub console_log: Option<OwnedFd>,
    /// The file of a template that is to be made.
    pub new_template: Option<OwnedFd>,
}

impl OpenFile {
    /// The same file by another descriptor.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { path: self.path.clone(), file: self.file.try_clone()?, length: self.length })
    }

    fn of(kind: &'static str, file: OwnedFd) -> Result<Self, ResourcesError> {
        // Errors name the file. Without procfs they do not.
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
        let file = File::from(file);
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(ResourcesError::Examine { kind, path, source }),
        };
        if !metadata.is_file() {
            return Err(ResourcesError::NotAFile { kind, path });
        }
        if metadata.len() == 0 {
            return Err(ResourcesError::Empty { kind, path });
        }
        Ok(Self { path, file, length: metadata.len() })
    }
}

fn memory_size(asked: u64, host: u64) -> Result<u64, ResourcesError> {
    if asked < MIN_MEMORY_MIB {
        return Err(ResourcesError::MemoryTooSmall(asked));
    }
    if asked > host { Err(ResourcesError::MemoryTooLarge { asked, host }) } else { Ok(asked * MIB) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{JailConfig, TemplateUse};

    fn config() -> SandboxConfig {
        SandboxConfig {
            memory_mib: 64,
            vcpus: 1,
            max_vcpus: 3,
            has_cgroup: false,
            network_slots: 0,
            main_container: "web".to_owned(),
            has_console_log: true,
            template: TemplateUse::None,
            jail: JailConfig::default(),
        }
    }

    /// Files with the given contents in `directory`.
    fn files(directory: &std::path::Path, kernel: &str, initramfs: &str) -> MachineFiles {
        let open = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            OwnedFd::from(File::open(path).unwrap())
        };
        MachineFiles {
            kvm: open("kvm", ""),
            kernel: open("vmlinux", kernel),
            initramfs: open("initramfs.cpio", initramfs),
            console_log: None,
            new_template: None,
        }
    }

    fn error(change: impl FnOnce(&mut SandboxConfig, &mut MachineFiles)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let (mut config, mut files) = (config(), files(directory.path(), "kernel", "initramfs"));
        change(&mut config, &mut files);
        let text = Resources::of(&config, files).unwrap_err().to_string();
        text.replace(directory.path().to_str().unwrap(), "DIR")
    }

    #[test]
    fn a_valid_configuration_becomes_resources() {
        let directory = tempfile::tempdir().unwrap();
        let resources = Resources::of(&config(), files(directory.path(), "kernel", "initramfs")).unwrap();
        assert!(resources.max_memory_size > resources.memory_size);
        assert_eq!((resources.memory_size, resources.kernel.length, resources.initramfs.length), (64 << 20, 6, 9));
        assert_eq!((resources.vcpus, resources.max_vcpus), (1, 3));
    }

    #[test]
    fn the_maximum_of_vcpus_is_between_those_at_boot_and_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let max_vcpus = |vcpus, max_vcpus| {
            let config = SandboxConfig { vcpus, max_vcpus, ..config() };
            Resources::of(&config, files(directory.path(), "kernel", "initramfs")).unwrap().max_vcpus
        };
        assert_eq!((max_vcpus(2, 0), max_vcpus(2, 8), max_vcpus(1, 200)), (2, 8, 64));
    }

    #[test]
    fn errors_name_the_invalid_value() {
        assert_eq!(error(|config, _| config.vcpus = 0), "a guest has 1 to 64 vCPUs, not 0");
        assert_eq!(error(|config, _| config.vcpus = 65), "a guest has 1 to 64 vCPUs, not 65");
        let small = error(|config, _| config.memory_mib = 63);
        assert_eq!(small, "a guest needs at least 64 MiB of memory, 63 MiB were asked for");
        let large = error(|config, _| config.memory_mib = u64::MAX);
        assert!(large.starts_with("18446744073709551615 MiB of guest memory were asked for, this host has"), "{large}");
        let directory = error(|_, files| files.initramfs = File::open("/").unwrap().into());
        assert_eq!(directory, "the initramfs / is not a regular file");
        let directory = tempfile::tempdir().unwrap();
        let empty = Resources::of(&config(), files(directory.path(), "kernel", "")).unwrap_err().to_string();
        assert!(empty.ends_with("initramfs.cpio is empty"), "{empty}");
    }
}
