//! A bundle's `config.json`: the output of `runc spec`, changed by the image's configuration and the user's options.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder,
    LinuxMemoryBuilder, LinuxResourcesBuilder, Mount, Process, RootBuilder, Spec, User,
};
use thiserror::Error;

use crate::cli::{BundleArgs, Volume};

/// The reason why no `config.json` was written.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("the specification")]
    Spec(#[from] OciSpecError),
    #[error("the file")]
    File(#[from] io::Error),
}

/// The image's configuration of the process.
#[derive(Debug, Default)]
pub(super) struct ImageDefaults {
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) cwd: Option<PathBuf>,
    pub(super) user: Option<User>,
    pub(super) annotations: HashMap<String, String>,
}

/// Writes the `config.json` of a bundle. The root file system is in `rootfs` beside it.
pub(super) fn write(path: &Path, args: &BundleArgs, image: ImageDefaults) -> Result<(), Error> {
    let spec = specification(args, image)?;
    let mut file = File::create_new(path)?;
    serde_json::to_writer_pretty(&mut file, &spec).map_err(io::Error::from)?;
    Ok(file.write_all(b"\n")?)
}

fn specification(args: &BundleArgs, image: ImageDefaults) -> Result<Spec, Error> {
    let mut spec = Spec::default();
    spec.set_root(Some(RootBuilder::default().path("rootfs").readonly(args.read_only).build()?));
    spec.set_hostname(Some(args.hostname.clone()));
    let annotations = annotations(args, image.annotations.clone());
    spec.set_annotations((!annotations.is_empty()).then_some(annotations));
    spec.set_process(Some(process(args, image)?));
    spec.set_linux(Some(linux(args.memory)?));
    spec.mounts_mut().get_or_insert_default().extend(args.volume.iter().map(bind_mount));
    Ok(spec)
}

fn bind_mount(volume: &Volume) -> Mount {
    let mut mount = Mount::default();
    let access = if volume.read_only { "ro" } else { "rw" };
    mount.set_source(Some(volume.source.clone())).set_destination(volume.destination.clone());
    mount.set_typ(Some("bind".into())).set_options(Some(vec!["rbind".into(), access.into()]));
    mount
}

/// The image's labels, and the size of the virtual machine.
fn annotations(args: &BundleArgs, mut annotations: HashMap<String, String>) -> HashMap<String, String> {
    annotations.extend(args.vm_memory.clone().map(|memory| ("dev.vmrt.memory".to_string(), memory)));
    annotations.extend(args.vcpus.map(|vcpus| ("dev.vmrt.vcpus".to_string(), vcpus.to_string())));
    annotations
}

fn process(args: &BundleArgs, image: ImageDefaults) -> Result<Process, Error> {
    let mut process = Process::default();
    process.set_terminal(Some(args.terminal));
    process.set_args(Some(if args.args.is_empty() { image.args } else { args.args.clone() }));
    let defaults = process.env().clone().unwrap_or_default();
    process.set_env(Some(merge_env([defaults, image.env, args.env.clone()].concat())));
    process.set_cwd(args.cwd.clone().or(image.cwd).unwrap_or_else(|| PathBuf::from("/")));
    process.set_user(args.user.map_or_else(|| image.user.unwrap_or_default(), user));
    process.set_no_new_privileges(Some(!args.all_capabilities));
    let default_set = || LinuxCapabilities::default().bounding().clone().unwrap_or_default();
    process.set_capabilities(Some(capabilities(if args.all_capabilities {
        every_capability()?
    } else {
        default_set()
    })?));
    Ok(process)
}

/// Merges variables: the last value counts, at the position of the first.
fn merge_env(variables: Vec<String>) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    for variable in variables {
        let name = variable.split('=').next().unwrap_or_default();
        match merged.iter_mut().find(|known| known.split('=').next() == Some(name)) {
            Some(known) => *known = variable,
            None => merged.push(variable),
        }
    }
    merged
}

/// A user by user and group id.
pub(super) fn user((uid, gid): (u32, u32)) -> User {
    let mut user = User::default();
    user.set_uid(uid).set_gid(gid);
    user
}

fn every_capability() -> Result<Capabilities, Error> {
    let names = caps::all().into_iter().map(|capability| capability.to_string()).collect::<Vec<_>>();
    Ok(serde_json::from_value(names.into()).map_err(io::Error::from)?)
}

/// The inheritable set is empty. Otherwise a file's inheritable capabilities would take effect (CVE-2022-24769).
fn capabilities(set: Capabilities) -> Result<LinuxCapabilities, Error> {
    let builder = LinuxCapabilitiesBuilder::default().inheritable(Capabilities::default());
    let builder = builder.bounding(set.clone()).effective(set.clone()).permitted(set);
    Ok(builder.ambient(Capabilities::default()).build()?)
}

/// Namespaces and masked paths as in `runc spec`, only the default devices, and a memory limit in bytes.
fn linux(memory_limit: Option<i64>) -> Result<Linux, Error> {
    let every_device = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let mut resources = LinuxResourcesBuilder::default().devices([every_device]).build()?;
    if let Some(limit) = memory_limit {
        resources.set_memory(Some(LinuxMemoryBuilder::default().limit(limit).build()?));
    }
    Ok(LinuxBuilder::default().resources(resources).build()?)
}
