//! Checks of a specification that depend on nothing else.

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::error::BundleError;
use super::hooks;
use super::id_mappings;
use super::namespaces::has_namespace;

/// Checks a specification.
pub(super) fn check(spec: &Spec) -> Result<(), BundleError> {
    check_version(spec.version())?;
    if spec.root().as_ref().is_none_or(|root| root.path().as_os_str().is_empty()) {
        return Err(BundleError::NoRoot);
    }
    check_process(spec.process().as_ref().ok_or(BundleError::NoProcess)?)?;
    check_namespaces(spec)?;
    id_mappings::check(spec)?;
    spec.hooks().as_ref().map_or(Ok(()), hooks::check)
}

/// Accepts every version 1.x: what later versions add is optional.
fn check_version(version: &str) -> Result<(), BundleError> {
    let mut parts = version.split(['-', '+']).next().unwrap_or_default().split('.');
    let valid = parts.clone().count() == 3 && parts.clone().all(|part| part.parse::<u32>().is_ok());
    if valid && parts.next() == Some("1") { Ok(()) } else { Err(BundleError::Version(version.into())) }
}

/// Checks a process: the init process or one that `exec` starts.
pub(crate) fn check_process(process: &Process) -> Result<(), BundleError> {
    let cwd = process.cwd();
    let args = process.args().as_deref().unwrap_or_default();
    let env = process.env().as_deref().unwrap_or_default();
    let has_nul = |texts: &[String]| texts.iter().any(|text| text.contains('\0'));
    match () {
        () if cwd.as_os_str().is_empty() => Err(BundleError::NoCwd),
        () if !cwd.is_absolute() => Err(BundleError::RelativeCwd),
        () if args.is_empty() => Err(BundleError::NoArgs),
        () if has_nul(args) => Err(BundleError::Nul("args")),
        () if has_nul(env) => Err(BundleError::Nul("env")),
        () => check_environment(env),
    }
}

/// Checks that every variable has a name.
fn check_environment(env: &[String]) -> Result<(), BundleError> {
    let invalid = env.iter().find(|entry| entry.find('=').is_none_or(|end| end == 0));
    invalid.map_or(Ok(()), |entry| Err(BundleError::Environment(entry.clone())))
}

/// Namespaces that a container must have. Without one, it would share the host's namespace, which is impossible in a virtual machine.
/// In the guest, vsock sockets are allowed in the agent's network namespace, so no container may be in that one.
/// `uts` is last: if a user asks an engine for another namespace of the host, the engine omits `uts` as well, and the error should name
/// what the user asked for.
const REQUIRED_NAMESPACES: [LinuxNamespaceType; 5] = [
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Uts,
];

fn check_namespaces(spec: &Spec) -> Result<(), BundleError> {
    let has = |kind| has_namespace(spec, kind);
    let has_hostname = spec.hostname().as_ref().is_some_and(|name| !name.is_empty());
    match REQUIRED_NAMESPACES.into_iter().find(|kind| !has(*kind)) {
        Some(LinuxNamespaceType::Uts) if has_hostname => Err(BundleError::HostnameWithoutUts),
        Some(kind) => Err(BundleError::HostNamespace(kind)),
        None => Ok(()),
    }
}
