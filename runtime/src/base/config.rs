//! The host's configuration of vmrt, `/etc/vmrt/config.toml`. The file is optional.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

/// Path of the configuration file where the command line names none.
pub(crate) const DEFAULT_PATH: &str = "/etc/vmrt/config.toml";

const DEFAULT_MEMORY_MIB: u64 = 512;
/// Each possible vCPU costs the guest 200 KiB, even if it is never added.
const DEFAULT_MAX_VCPUS: u8 = 16;
const DEFAULT_TEMPLATE_MAX_MIB: u64 = 2048;
/// Directory of templates in a cache.
const TEMPLATE_DIR: &str = "vmrt/templates";
/// The VMM has a shorter deadline for each step, and its error names the step. This one is for a VMM that hangs itself.
const DEFAULT_START_TIMEOUT_SECONDS: u64 = 120;

/// Why the configuration cannot be loaded.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {reason}", path.display())]
    Parse { path: PathBuf, reason: String },
    #[error("find out where vmrt is installed")]
    ProgramPath(#[source] io::Error),
    #[error("{name} must be an absolute path, not `{}`", path.display())]
    Relative { name: &'static str, path: PathBuf },
}

/// The content of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    vmm: Option<PathBuf>,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    /// MiB of guest memory where neither an annotation nor a limit gives the amount.
    memory: Option<u64>,
    vcpus: Option<u8>,
    max_vcpus: Option<u8>,
    /// Seconds from the start of the VMM until the container must exist in the guest.
    start_timeout: Option<u64>,
    /// Whether machines start from templates.
    template: Option<bool>,
    template_dir: Option<PathBuf>,
    /// Most MiB that all templates take on the disk.
    template_max: Option<u64>,
    #[serde(default)]
    network: Network,
}

/// The table `[network]` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Network {
    anti_spoofing: bool,
}

/// The configuration with defaults filled in. Every path is absolute. None of the files has been opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Config {
    /// The file that was read, if it was named.
    pub(crate) file: Option<PathBuf>,
    /// Path of this program.
    pub(crate) program: PathBuf,
    pub(crate) vmm: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) memory_mib: u64,
    pub(crate) vcpus: u8,
    /// Most vCPUs that a running machine can get. The number of CPUs of the host limits it further.
    pub(crate) max_vcpus: u8,
    pub(crate) start_timeout: Duration,
    /// Whether machines start from templates.
    pub(crate) template: bool,
    pub(crate) template_dir: PathBuf,
    /// Root's templates, which a caller without root uses if there is none in `template_dir`.
    pub(crate) shared_template_dir: Option<PathBuf>,
    /// Most MiB that all templates take on the disk.
    pub(crate) template_max_mib: u64,
    /// Whether guests may send only with the addresses of their interfaces.
    pub(crate) anti_spoofing: bool,
}

impl Config {
    /// Reads the file at `path`, or at the default path if that exists. A path in the environment has precedence over one in the
    /// file, and a path in the file over the installed one. `is_root` says whether the caller is the host's root.
    pub(crate) fn load(path: Option<&Path>, is_root: bool) -> Result<Self, ConfigError> {
        let file = match path {
            Some(path) => read(path)?,
            None if Path::new(DEFAULT_PATH).exists() => read(Path::new(DEFAULT_PATH))?,
            None => File::default(),
        };
        let program = env::current_exe().map_err(ConfigError::ProgramPath)?;
        let install_dir = install_dir(&program);
        let component = |variable: &'static str, configured: Option<PathBuf>, name: &str| {
            let path = env::var_os(variable).map(PathBuf::from).or(configured);
            require_absolute(variable, path.unwrap_or_else(|| install_dir.join(name)))
        };
        Ok(Self {
            file: path.map(Path::to_owned),
            program,
            vmm: component("VMRT_VMM", file.vmm, "vmrt-vmm")?,
            kernel: component("VMRT_KERNEL", file.kernel, "vmlinux")?,
            initramfs: component("VMRT_INITRAMFS", file.initramfs, "initramfs.cpio")?,
            memory_mib: file.memory.unwrap_or(DEFAULT_MEMORY_MIB),
            vcpus: file.vcpus.unwrap_or(1),
            max_vcpus: file.max_vcpus.unwrap_or(DEFAULT_MAX_VCPUS),
            start_timeout: Duration::from_secs(file.start_timeout.unwrap_or(DEFAULT_START_TIMEOUT_SECONDS)),
            template: file.template.unwrap_or(true),
            shared_template_dir: (!is_root && file.template_dir.is_none()).then(root_template_dir),
            template_dir: require_absolute(
                "template_dir",
                file.template_dir.unwrap_or_else(|| default_template_dir(is_root)),
            )?,
            template_max_mib: file.template_max.unwrap_or(DEFAULT_TEMPLATE_MAX_MIB),
            anti_spoofing: file.network.anti_spoofing,
        })
    }
}

fn root_template_dir() -> PathBuf {
    Path::new("/var/cache").join(TEMPLATE_DIR)
}

/// Root's templates are in `/var/cache`, those of other users in their caches (XDG Base Directory Specification).
fn default_template_dir(is_root: bool) -> PathBuf {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user_cache = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let cache = if is_root { None } else { user_cache() };
    cache.map_or_else(root_template_dir, |cache| cache.join(TEMPLATE_DIR))
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    toml::from_str(&text).map_err(|error| ConfigError::Parse { path: path.into(), reason: on_one_line(&error) })
}

/// The place and the cause of an error. Its text has the lines of the file between them.
fn on_one_line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let (place, cause) = text.trim_end().split_once('\n').unwrap_or(("", text.trim_end()));
    format!("{place}: {}", cause.lines().last().unwrap_or_default())
}

/// `../lib/vmrt` relative to the directory of `program`.
fn install_dir(program: &Path) -> PathBuf {
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    prefix.join("lib/vmrt")
}

/// Refuses a relative path: the VMM has another working directory.
fn require_absolute(name: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() { Ok(path) } else { Err(ConfigError::Relative { name, path }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        Config::load(Some(&path), true)
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = load("").unwrap();
        assert!(config.vmm.ends_with("lib/vmrt/vmrt-vmm"));
        assert!(config.kernel.ends_with("lib/vmrt/vmlinux"));
        assert_eq!((config.memory_mib, config.vcpus, config.max_vcpus), (512, 1, 16));
        assert_eq!((config.start_timeout, config.anti_spoofing), (Duration::from_secs(120), false));
        assert!(config.template && config.template_dir == Path::new("/var/cache/vmrt/templates"));
        assert_eq!(config.shared_template_dir, None);
    }

    #[test]
    fn the_file_overrides_the_defaults() {
        let config = load("kernel = '/k'\nmemory = 256\nvcpus = 4\nmax_vcpus = 8\nstart_timeout = 3\n").unwrap();
        assert_eq!(config.kernel, Path::new("/k"));
        assert_eq!((config.memory_mib, config.vcpus, config.max_vcpus), (256, 4, 8));
        assert_eq!(config.start_timeout, Duration::from_secs(3));
        assert!(load("[network]\nanti_spoofing = true").unwrap().anti_spoofing);
    }

    #[test]
    fn an_invalid_file_is_refused() {
        assert!(matches!(load("kernal = '/k'"), Err(ConfigError::Parse { .. })));
        assert!(matches!(load("[network]\nanti_spofing = true"), Err(ConfigError::Parse { .. })));
        let text = load("memory = 1\nkernal = '/k'").unwrap_err().to_string();
        assert!(text.contains("config.toml: TOML parse error at line 2, column 1: unknown field `kernal`"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(matches!(load("kernel = 'k'"), Err(ConfigError::Relative { .. })));
        assert!(matches!(Config::load(Some(Path::new("/nonexistent")), true), Err(ConfigError::Read { .. })));
    }
}
