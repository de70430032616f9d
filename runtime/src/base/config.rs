//! The machine's configuration of vmrt: `/etc/vmrt/config.toml`, which need not exist.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

/// Where the configuration is looked for.
pub(crate) const DEFAULT_PATH: &str = "/etc/vmrt/config.toml";

const DEFAULT_MEMORY_MIB: u64 = 512;
/// Each costs the guest 200 KiB, whether it comes or not.
const DEFAULT_MAX_VCPUS: u8 = 16;
/// The VMM has shorter deadlines of its own for every step, and names the one that hung; this is for a VMM that hangs.
const DEFAULT_START_TIMEOUT_SECONDS: u64 = 120;

/// Why there is no configuration.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("find out where vmrt is installed")]
    OwnPath(#[source] io::Error),
    #[error("{name} must be an absolute path, not `{}`", path.display())]
    Relative { name: &'static str, path: PathBuf },
}

/// The file, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    vmm: Option<PathBuf>,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    /// MiB of guest memory where neither annotation nor limit says how much.
    memory: Option<u64>,
    vcpus: Option<u8>,
    max_vcpus: Option<u8>,
    /// Seconds a guest may take from the start of its VMM until its container is made.
    start_timeout: Option<u64>,
}

/// The configuration, with every path filled in. None of the files has been opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Config {
    /// This program.
    pub(crate) program: PathBuf,
    pub(crate) vmm: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) memory_mib: u64,
    pub(crate) vcpus: u8,
    /// Most vCPUs that a machine may be given while it runs, if the host has as many CPUs.
    pub(crate) max_vcpus: u8,
    pub(crate) start_timeout: Duration,
}

impl Config {
    /// Reads the file; paths in the environment come before those in it, and what is installed beside `vmrt` last.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = match path {
            Some(path) => read(path)?,
            None if Path::new(DEFAULT_PATH).exists() => read(Path::new(DEFAULT_PATH))?,
            None => File::default(),
        };
        let program = env::current_exe().map_err(ConfigError::OwnPath)?;
        let beside = installed(&program);
        let part = |variable: &'static str, configured: Option<PathBuf>, name: &str| {
            let path = env::var_os(variable).map(PathBuf::from).or(configured);
            absolute(variable, path.unwrap_or_else(|| beside.join(name)))
        };
        Ok(Self {
            program,
            vmm: part("VMRT_VMM", file.vmm, "vmrt-vmm")?,
            kernel: part("VMRT_KERNEL", file.kernel, "vmlinux")?,
            initramfs: part("VMRT_INITRAMFS", file.initramfs, "initramfs.cpio")?,
            memory_mib: file.memory.unwrap_or(DEFAULT_MEMORY_MIB),
            vcpus: file.vcpus.unwrap_or(1),
            max_vcpus: file.max_vcpus.unwrap_or(DEFAULT_MAX_VCPUS),
            start_timeout: Duration::from_secs(file.start_timeout.unwrap_or(DEFAULT_START_TIMEOUT_SECONDS)),
        })
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })
}

/// `../lib/vmrt` as seen from the directory of this program.
fn installed(program: &Path) -> PathBuf {
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    prefix.join("lib/vmrt")
}

/// The VMM has another working directory, so a relative path would not mean the same to it.
fn absolute(name: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() { Ok(path) } else { Err(ConfigError::Relative { name, path }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        Config::load(Some(&path))
    }

    #[test]
    fn an_empty_file_means_what_is_installed() {
        let config = load("").unwrap();
        assert!(config.vmm.ends_with("lib/vmrt/vmrt-vmm"));
        assert!(config.kernel.ends_with("lib/vmrt/vmlinux"));
        assert_eq!((config.memory_mib, config.vcpus, config.max_vcpus), (512, 1, 16));
        assert_eq!(config.start_timeout, Duration::from_secs(120));
    }

    #[test]
    fn the_file_says_otherwise() {
        let config = load("kernel = '/k'\nmemory = 256\nvcpus = 4\nmax_vcpus = 8\nstart_timeout = 3\n").unwrap();
        assert_eq!(config.kernel, Path::new("/k"));
        assert_eq!((config.memory_mib, config.vcpus, config.max_vcpus), (256, 4, 8));
        assert_eq!(config.start_timeout, Duration::from_secs(3));
    }

    #[test]
    fn what_it_does_not_know_is_refused() {
        assert!(matches!(load("kernal = '/k'"), Err(ConfigError::Parse { .. })));
        assert!(matches!(load("kernel = 'k'"), Err(ConfigError::Relative { .. })));
        assert!(matches!(Config::load(Some(Path::new("/nonexistent"))), Err(ConfigError::Read { .. })));
    }
}
