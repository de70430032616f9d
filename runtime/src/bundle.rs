//! Bundles: a directory with `config.json` and, usually, the root file system.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::capabilities;
use crate::hooks;
use crate::id_mappings;
use crate::log::Log;
use crate::resources::leave_out_kernel_memory;

/// Name of the specification in a bundle.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// Why a bundle cannot be run. Where runc has words for it, they are runc's.
#[derive(Debug, Error)]
pub(crate) enum BundleError {
    #[error("chdir {}", path.display())]
    NoBundle { path: PathBuf, source: io::Error },
    #[error("JSON specification file {} not found", .0.display())]
    NoConfig(PathBuf),
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no valid specification", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{} is no valid specification: it holds no JSON object", .0.display())]
    NoObject(PathBuf),
    #[error("ociVersion `{0}` is not supported: vmrt implements 1.x")]
    Version(String),
    #[error("root must be specified")]
    NoRoot,
    #[error("process property must not be empty")]
    NoProcess,
    #[error("Cwd property must not be empty")]
    NoCwd,
    #[error("Cwd must be an absolute path")]
    RelativeCwd,
    #[error("args must not be empty")]
    NoArgs,
    #[error("process.{0} holds a NUL character")]
    Nul(&'static str),
    #[error("invalid environment variable: \"{0}\"")]
    Environment(String),
    #[error("unable to set hostname without a private UTS namespace")]
    HostnameWithoutUts,
    #[error("the host's {0} namespace is refused: a container in its own virtual machine cannot share it")]
    HostNamespace(LinuxNamespaceType),
    #[error("invalid mount {}: {reason}", destination.display())]
    Mount { destination: PathBuf, reason: &'static str },
    #[error("hooks.{turn}: {reason}")]
    Hook { turn: &'static str, reason: String },
}

/// A bundle whose specification was read and makes sense. Nothing in it has been opened.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Absolute.
    pub(crate) dir: PathBuf,
    pub(crate) spec: Spec,
}

impl Bundle {
    /// Reads and checks a bundle, whose specification may be another file than its own: from the working directory, if relative.
    pub(crate) fn load(dir: &Path, config: Option<&Path>, log: &Log) -> Result<Self, BundleError> {
        let absolute = fs::canonicalize(dir).and_then(|dir| dir.read_dir().map(|_| dir));
        let dir = absolute.map_err(|source| BundleError::NoBundle { path: dir.into(), source })?;
        let spec = match config {
            Some(path) => read_spec(path, path, log),
            None => read_spec(&dir.join(CONFIG_FILE), Path::new(CONFIG_FILE), log),
        }?;
        check(&spec)?;
        Ok(Self { dir, spec })
    }

    /// Absolute path of the root file system.
    pub(crate) fn rootfs(&self) -> PathBuf {
        let root = self.spec.root().as_ref().map(|root| root.path().as_path());
        self.dir.join(root.unwrap_or(Path::new("")))
    }

    /// Takes what is no longer to be used as runc does, and tells of it: relative destinations of mounts are relative to the root,
    /// and limits of kernel memory, which cgroup v2 has not, are none.
    pub(crate) fn take_what_is_old(&mut self, log: &Log) {
        self.root_mounts(log);
        let resources = self.spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
        if let Some(resources) = resources {
            leave_out_kernel_memory(resources, log);
        }
    }

    fn root_mounts(&mut self, log: &Log) {
        let mounts = self.spec.mounts_mut().iter_mut().flatten();
        for mount in mounts.filter(|mount| !mount.destination().is_absolute()) {
            log.warn(&format!("mount destination {} is not absolute", mount.destination().display()));
            mount.set_destination(Path::new("/").join(mount.destination()));
        }
    }

    /// The container's first process.
    pub(crate) fn process(&self) -> Result<&Process, BundleError> {
        self.spec.process().as_ref().ok_or(BundleError::NoProcess)
    }

    /// Whether its first process has a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        self.process().is_ok_and(|process| process.terminal().unwrap_or_default())
    }
}

/// Reads the file at `path`, which is known as `name`.
fn read_spec(path: &Path, name: &Path, log: &Log) -> Result<Spec, BundleError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BundleError::NoConfig(name.into())),
        result => result.map_err(|source| BundleError::Read { path: path.into(), source })?,
    };
    let spec = parse(&text, "/process", log).map_err(|source| BundleError::Json { path: path.into(), source })?;
    // An array of the fields' values would do for the parser.
    if text.trim_ascii_start().starts_with(b"{") { Ok(spec) } else { Err(BundleError::NoObject(path.into())) }
}

/// Reads what holds a process at the JSON pointer `process`, also where that is as runc takes it and the parser does not.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8], process: &str, log: &Log) -> serde_json::Result<T> {
    serde_json::from_slice(text).or_else(|error| {
        let mut value: Value = serde_json::from_slice(text)?;
        let process = value.pointer_mut(process).and_then(Value::as_object_mut);
        let mended = process.is_some_and(|process| mend(process) | capabilities::leave_out_unknown(process, log));
        // Only the text's own error tells its place.
        if mended { serde_json::from_value(value) } else { Err(error) }
    })
}

/// Flags of a scheduler: as the specification calls them, and as the parser does.
const SCHEDULER_FLAGS: [(&str, &str); 2] =
    [("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"), ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN")];

/// Gives a process root for its user, if it has none, and its scheduler's flags the parser's names; whether it had to.
fn mend(process: &mut Map<String, Value>) -> bool {
    let nobody = process.get("user").is_none_or(Value::is_null);
    if nobody {
        process.insert("user".into(), json!({}));
    }
    let flags = process.get_mut("scheduler").and_then(|scheduler| scheduler.get_mut("flags"));
    let mut renamed = false;
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        let known = SCHEDULER_FLAGS.iter().find(|(name, _)| flag.as_str() == Some(name));
        if let Some((_, name)) = known {
            *flag = (*name).into();
            renamed = true;
        }
    }
    nobody || renamed
}

fn check(spec: &Spec) -> Result<(), BundleError> {
    check_version(spec.version())?;
    if spec.root().as_ref().is_none_or(|root| root.path().as_os_str().is_empty()) {
        return Err(BundleError::NoRoot);
    }
    check_process(spec.process().as_ref().ok_or(BundleError::NoProcess)?)?;
    check_namespaces(spec)?;
    id_mappings::check(spec)?;
    spec.hooks().as_ref().map_or(Ok(()), hooks::check)
}

/// Every version 1 can be run: what later ones added is optional.
fn check_version(version: &str) -> Result<(), BundleError> {
    let mut parts = version.split(['-', '+']).next().unwrap_or_default().split('.');
    let valid = parts.clone().count() == 3 && parts.clone().all(|part| part.parse::<u32>().is_ok());
    if valid && parts.next() == Some("1") { Ok(()) } else { Err(BundleError::Version(version.into())) }
}

/// Checks a process that is to be run, first or later.
pub(crate) fn check_process(process: &Process) -> Result<(), BundleError> {
    let cwd = process.cwd();
    let args = process.args().as_deref().unwrap_or_default();
    let env = process.env().as_deref().unwrap_or_default();
    let nul = |texts: &[String]| texts.iter().any(|text| text.contains('\0'));
    match () {
        () if cwd.as_os_str().is_empty() => Err(BundleError::NoCwd),
        () if !cwd.is_absolute() => Err(BundleError::RelativeCwd),
        () if args.is_empty() => Err(BundleError::NoArgs),
        () if nul(args) => Err(BundleError::Nul("args")),
        () if nul(env) => Err(BundleError::Nul("env")),
        () => check_environment(env),
    }
}

/// Every variable has a name.
fn check_environment(env: &[String]) -> Result<(), BundleError> {
    let bad = env.iter().find(|entry| entry.find('=').is_none_or(|end| end == 0));
    bad.map_or(Ok(()), |entry| Err(BundleError::Environment(entry.clone())))
}

/// The namespaces whose absence means the host's own, which a machine of its own cannot give. Engines leave out `uts` beside
/// those that their users have asked for, so it comes last.
const ISOLATED: [LinuxNamespaceType; 5] = [
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Uts,
];

/// Whether the container is to have a namespace of this kind, new or another's.
pub(crate) fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let mut namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces.any(|namespace| namespace.typ() == kind)
}

fn check_namespaces(spec: &Spec) -> Result<(), BundleError> {
    let has = |kind| has_namespace(spec, kind);
    let named = spec.hostname().as_ref().is_some_and(|name| !name.is_empty());
    match ISOLATED.into_iter().find(|kind| !has(*kind)) {
        Some(LinuxNamespaceType::Uts) if named => Err(BundleError::HostnameWithoutUts),
        Some(kind) => Err(BundleError::HostNamespace(kind)),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
