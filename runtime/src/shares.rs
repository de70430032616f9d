//! What of the host a container's guest gets to see: its root file system and the sources of its bind mounts.
//!
//! Each is opened here, once, as a descriptor that is only a place (`O_PATH`). The VMM serves what is below it, and
//! the specification the guest gets names it by the share's path in the guest.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use thiserror::Error;

use crate::bundle::Bundle;
use crate::hooks;
use crate::id::ContainerId;

/// Why something cannot be shared.
#[derive(Debug, Error)]
pub(crate) enum ShareError {
    #[error("invalid rootfs: {}", path.display())]
    Rootfs { path: PathBuf, source: io::Error },
    #[error("error mounting \"{}\" to rootfs at \"{}\"", path.display(), destination.display())]
    Source { path: PathBuf, destination: PathBuf, source: io::Error },
    #[error("mount {} has no source", .0.display())]
    NoSource(PathBuf),
    #[error("cannot share {} with a virtual machine: it is a {kind}", path.display())]
    Special { path: PathBuf, kind: &'static str },
}

/// One directory or file to share.
#[derive(Debug)]
pub(crate) struct Share {
    /// `CONTAINER/rootfs` or `CONTAINER/volume-N`.
    pub(crate) name: String,
    pub(crate) read_only: bool,
    /// `O_PATH` descriptor of it.
    pub(crate) source: OwnedFd,
}

/// Opens everything a bundle's container needs of the host; returns that and the specification as the guest sees it.
pub(crate) fn open_all(id: &ContainerId, bundle: &Bundle) -> Result<(Spec, Vec<Share>), ShareError> {
    let mut spec = bundle.spec.clone();
    let mut shares = vec![open_rootfs(id, bundle, &mut spec)?];
    for (number, mount) in spec.mounts_mut().iter_mut().flatten().filter(|mount| is_bind(mount)).enumerate() {
        let share = open_volume(&bundle.dir, format!("{id}/volume-{number}"), mount)?;
        mount.set_source(Some(guest_path(&share.name)));
        shares.push(share);
    }
    forget_host_cpus(&mut spec);
    forget_host_network(&mut spec);
    hooks::leave_guests(&mut spec);
    Ok((spec, shares))
}

/// The guest remounts a read-only root itself: before that it makes mount points in it.
fn open_rootfs(id: &ContainerId, bundle: &Bundle, spec: &mut Spec) -> Result<Share, ShareError> {
    let path = bundle.rootfs();
    let source = open(&path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let source = source.map_err(|error| ShareError::Rootfs { path, source: error.into() })?;
    let share = Share { name: format!("{id}/rootfs"), read_only: false, source };
    if let Some(root) = spec.root_mut() {
        root.set_path(guest_path(&share.name));
    }
    Ok(share)
}

fn open_volume(bundle: &Path, name: String, mount: &Mount) -> Result<Share, ShareError> {
    let source = mount.source().as_ref().filter(|source| !source.as_os_str().is_empty());
    let path = bundle.join(source.ok_or_else(|| ShareError::NoSource(mount.destination().clone()))?);
    let opened = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|file| Ok((fstat(&file)?, file)))
        .map_err(|error| ShareError::Source {
            path: path.clone(),
            destination: mount.destination().clone(),
            source: error.into(),
        });
    let (stat, source) = opened?;
    match special(&stat) {
        Some(kind) => Err(ShareError::Special { path, kind }),
        None => Ok(Share { name, read_only: options(mount).any(|option| option == "ro" || option == "rro"), source }),
    }
}

/// Kinds of file whose other end is in the host's kernel, where a guest does not reach.
fn special(stat: &FileStat) -> Option<&'static str> {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFCHR => Some("character device"),
        SFlag::S_IFBLK => Some("block device"),
        SFlag::S_IFIFO => Some("named pipe"),
        SFlag::S_IFSOCK => Some("socket"),
        _ => None,
    }
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || options(mount).any(|option| option == "bind" || option == "rbind")
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

fn guest_path(share: &str) -> PathBuf {
    Path::new(agent::SHARES_DIR).join(share)
}

/// CPU and memory node lists number the host's: the VMM is bound to those, and the guest has others.
pub(crate) fn forget_host_cpus(spec: &mut Spec) {
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    if let Some(cpu) = resources.and_then(|resources| resources.cpu_mut().as_mut()) {
        cpu.set_cpus(None);
        cpu.set_mems(None);
    }
}

/// The namespace with the network on the host is the VMM's; the container gets one of the guest's.
fn forget_host_network(spec: &mut Spec) {
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten().filter(|own| own.typ() == LinuxNamespaceType::Network) {
        namespace.set_path(None);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use serde_json::{Value, json};

    use super::*;
    use crate::bundle::CONFIG_FILE;

    fn bundle(mounts: &Value) -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        let mut spec: Value = serde_json::from_str(include_str!("commands/spec.json")).unwrap();
        spec["mounts"] = mounts.clone();
        spec["linux"]["resources"]["cpu"] = json!({"cpus": "3", "shares": 7});
        fs::write(dir.path().join(CONFIG_FILE), spec.to_string()).unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let bundle = Bundle::load(dir.path()).unwrap();
        (dir, bundle)
    }

    fn open_one(mount: &Value) -> Result<(Spec, Vec<Share>), ShareError> {
        let (_guard, bundle) = bundle(&json!([mount]));
        open_all(&"web".parse().unwrap(), &bundle)
    }

    #[test]
    fn paths_become_the_guests() {
        let (_guard, bundle) = bundle(&json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/a", "type": "bind", "source": "file", "options": ["ro"]},
            {"destination": "/b", "type": "none", "source": "rootfs", "options": ["rbind"]},
        ]));
        let (spec, shares) = open_all(&"web".parse().unwrap(), &bundle).unwrap();
        let names: Vec<_> = shares.iter().map(|share| (share.name.as_str(), share.read_only)).collect();
        assert_eq!(names, [("web/rootfs", false), ("web/volume-0", true), ("web/volume-1", false)]);
        assert_eq!(spec.root().as_ref().unwrap().path(), Path::new("/run/vmrt/shares/web/rootfs"));
        let sources: Vec<_> = spec.mounts().iter().flatten().map(|mount| mount.source().clone().unwrap()).collect();
        let expected = ["proc", "/run/vmrt/shares/web/volume-0", "/run/vmrt/shares/web/volume-1"];
        assert_eq!(sources, expected.map(PathBuf::from));
    }

    #[test]
    fn the_guest_does_not_see_the_hosts_cpu_numbers() {
        let (spec, _) = open_one(&json!({"destination": "/x", "type": "tmpfs"})).unwrap();
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!((cpu.cpus(), cpu.shares()), (&None, Some(7)));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = open_one(&json!({"destination": "/x", "type": "bind", "source": "/nonexistent"})).unwrap_err();
        assert_eq!(error.to_string(), "error mounting \"/nonexistent\" to rootfs at \"/x\"");
        let error = open_one(&json!({"destination": "/x", "type": "bind"})).unwrap_err();
        assert_eq!(error.to_string(), "mount /x has no source");
        let (_guard, bundle) = bundle(&json!([]));
        fs::remove_dir(bundle.rootfs()).unwrap();
        assert!(matches!(open_all(&"web".parse().unwrap(), &bundle), Err(ShareError::Rootfs { .. })));
    }

    #[test]
    fn devices_and_sockets_are_refused_by_name() {
        let error = open_one(&json!({"destination": "/x", "type": "bind", "source": "/dev/null"})).unwrap_err();
        assert_eq!(error.to_string(), "cannot share /dev/null with a virtual machine: it is a character device");
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let error = open_one(&json!({"destination": "/x", "type": "bind", "source": socket})).unwrap_err();
        assert!(matches!(error, ShareError::Special { kind: "socket", .. }));
    }
}
