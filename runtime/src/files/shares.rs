//! The files of the host that a container's guest gets: its root file system and the sources of its bind mounts.
//!
//! Each is opened once, here, as an `O_PATH` descriptor. The VMM serves what is below it. The guest's specification refers to it by
//! the path of the share in the guest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use agent::SpecialFile;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use oci_spec::runtime::{Mount, Root, Spec};
use thiserror::Error;
use vmm::control::ShareOptions;
use vmm::fs::kernel_view;

use crate::base::container_id::ContainerId;
use crate::files::device_directories::{self, Expanded};
use crate::files::id_mapped_mounts;
use crate::files::kernel_views::{self, SourceKind};
use crate::files::special;
use crate::host::mount_trees::{self, Source};
use crate::host::process::HostProcess;
use crate::spec::bundle::Bundle;
use crate::spec::mounts::{is_bind, is_recursive, options};

/// Why the guest cannot get a file.
#[derive(Debug, Error)]
pub(crate) enum ShareError {
    #[error("invalid rootfs: {}", path.display())]
    Rootfs { path: PathBuf, source: io::Error },
    #[error("error mounting \"{}\" to rootfs at \"{}\"", path.display(), destination.display())]
    Source { path: PathBuf, destination: PathBuf, source: io::Error },
    #[error("mount {} has no source", .0.display())]
    NoSource(PathBuf),
    #[error("mount {} cannot be shared with a virtual machine: {reason}", path.display())]
    Special { path: PathBuf, reason: &'static str },
    #[error("mount {} cannot be shared with a virtual machine: it is on {kind}, a view of the host's kernel", path.display())]
    KernelView { path: PathBuf, kind: &'static str },
    #[error(
        "mount option {option} of {} is refused: what is mounted in the container's virtual machine cannot appear on the host",
        destination.display()
    )]
    Shared { option: String, destination: PathBuf },
}

/// One directory or file to share.
#[derive(Debug)]
pub(crate) struct Share {
    /// `CONTAINER/rootfs` or `CONTAINER/volume-N`.
    pub(crate) name: String,
    pub(crate) options: ShareOptions,
    /// `O_PATH` descriptor of the directory or file.
    pub(crate) source: OwnedFd,
}

impl Share {
    /// What the VMM gets a clone of. It cannot write on the clone of a read-only share, even if it was taken over.
    fn clone_source(&self) -> Source<'_> {
        Source { root: self.source.as_fd(), read_only: self.options.read_only }
    }
}

/// All files of the host that a container needs.
#[derive(Debug)]
pub(crate) struct HostFiles {
    /// The specification for the guest.
    pub(crate) spec: Spec,
    pub(crate) shares: Vec<Share>,
    /// Files that cannot be shared and that the guest creates itself.
    pub(crate) special: Vec<SpecialFile>,
    /// `O_PATH` descriptors of the sockets in `special`, in the same order.
    pub(crate) sockets: Vec<OwnedFd>,
    /// Destinations at which the guest's devices are mounted instead of the host's.
    pub(crate) guest_devices: Vec<PathBuf>,
    /// Sources that the guest's own proc, sysfs or cgroup2 stands in for, with their destinations.
    pub(crate) guest_views: Vec<(PathBuf, PathBuf)>,
}

/// The opened source of a bind mount.
struct MountSource {
    path: PathBuf,
    /// `O_PATH` descriptor.
    fd: OwnedFd,
    stat: FileStat,
}

/// What the guest gets for the source of a bind mount.
enum GuestSource {
    /// A share, and the paths below it that need mounts of their own.
    Share(Share, Vec<PathBuf>),
    /// A special file, with its `O_PATH` descriptor if it is a socket.
    Special(SpecialFile, Option<OwnedFd>),
}

/// Opens all files of the host that the container of `bundle` needs.
///
/// # Errors
///
/// Fails if a file cannot be opened or the guest cannot get it.
pub(crate) fn open_all(id: &ContainerId, bundle: &Bundle) -> Result<HostFiles, ShareError> {
    let mut spec = bundle.spec.clone();
    let shares = vec![open_rootfs(id, bundle, &mut spec)?];
    let mounts = spec.mounts_mut().take();
    let (special, sockets) = (Vec::new(), Vec::new());
    let (guest_devices, guest_views) = (Vec::new(), Vec::new());
    let mut files = HostFiles { spec, shares, special, sockets, guest_devices, guest_views };
    let mounts = mounts.map(|mounts| files.add_sources(id, &bundle.dir, mounts)).transpose()?;
    files.spec.set_mounts(mounts);
    Ok(files)
}

impl HostFiles {
    /// Opens the sources of the bind mounts among `mounts`. Returns the mounts that the guest is to make.
    fn add_sources(&mut self, id: &ContainerId, bundle: &Path, mounts: Vec<Mount>) -> Result<Vec<Mount>, ShareError> {
        let mut guest_mounts = Vec::new();
        for mount in mounts {
            if !is_bind(&mount) {
                guest_mounts.push(mount);
                continue;
            }
            let source = open_source(bundle, &mount)?;
            let kind = kernel_views::source_kind(&mount, &source.fd, &source.stat, &self.spec);
            match kind.map_err(failed(&source.path, &mount))? {
                SourceKind::Replaced(mounts) => {
                    self.guest_views.push((source.path, mount.destination().clone()));
                    guest_mounts.extend(mounts);
                }
                SourceKind::Refused(kind) => return Err(ShareError::KernelView { path: source.path, kind }),
                SourceKind::Files if is_directory(&source.stat) => {
                    self.add_directory(id, bundle, &mount, source, &mut guest_mounts)?;
                }
                SourceKind::Files => self.add_source(id, mount, source, &mut guest_mounts)?,
            }
        }
        Ok(guest_mounts)
    }

    /// Adds a bind mount of a directory, with the guest's replacements of the device directories in it.
    fn add_directory(
        &mut self,
        id: &ContainerId,
        bundle: &Path,
        mount: &Mount,
        source: MountSource,
        guest_mounts: &mut Vec<Mount>,
    ) -> Result<(), ShareError> {
        let expanded = device_directories::expand(mount.clone(), &source.fd, &self.spec);
        let expanded = expanded.map_err(failed(&source.path, mount))?;
        // `source` belongs to the first mount.
        let mut opened = Some(source);
        for expanded in expanded {
            match (expanded, opened.take()) {
                (Expanded::Guest(mount), _) => {
                    self.guest_devices.push(mount.destination().clone());
                    guest_mounts.push(mount);
                }
                (Expanded::Host(mount), Some(source)) => self.add_source(id, mount, source, guest_mounts)?,
                (Expanded::Host(mount), None) => {
                    let source = open_source(bundle, &mount)?;
                    // Below a share, the guest sees nothing of a view of the host's kernel.
                    if kernel_view(&source.fd).map_err(|error| failed(&source.path, &mount)(error.into()))?.is_none() {
                        self.add_source(id, mount, source, guest_mounts)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the source of a bind mount, and appends the mount and those below it to `guest_mounts`.
    fn add_source(
        &mut self,
        id: &ContainerId,
        mut mount: Mount,
        source: MountSource,
        guest_mounts: &mut Vec<Mount>,
    ) -> Result<(), ShareError> {
        let name = format!("volume-{}", self.volumes());
        match guest_source(id, &name, &mount, source)? {
            GuestSource::Share(share, below) => {
                mount.set_source(Some(guest_path(&share.name)));
                let below: Vec<_> = below.iter().map(|path| id_mapped_mounts::mount_below(&mount, path)).collect();
                guest_mounts.push(mount);
                guest_mounts.extend(below);
                self.shares.push(share);
            }
            GuestSource::Special(file, socket) => {
                mount.set_source(Some(file.path(&id.to_string())));
                guest_mounts.push(mount);
                self.special.push(file);
                self.sockets.extend(socket);
            }
        }
        Ok(())
    }

    /// The root file system, if it is to be read-only once the container is created.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn read_only_root(&self) -> io::Result<Option<OwnedFd>> {
        let is_read_only = self.spec.root().as_ref().and_then(Root::readonly) == Some(true);
        let root = self.shares.first().filter(|_| is_read_only);
        root.map(|share| share.source.try_clone()).transpose()
    }

    /// The number of sources without the root file system.
    fn volumes(&self) -> usize {
        self.shares.len() - 1 + self.special.len()
    }
}

/// Replaces the sources that follow the host's mounts by clones in the mount namespace of `vmm`.
///
/// # Errors
/// The caller may not mount.
pub(crate) fn clone_following(shares: &mut [Share], vmm: HostProcess) -> io::Result<()> {
    let following = || shares.iter().filter(|share| share.options.follows_host);
    let sources: Vec<_> = following().map(|share| share.clone_source()).collect();
    let Some(clones) = mount_trees::clone_into(vmm, &sources)? else { return Ok(()) };
    let following = shares.iter_mut().filter(|share| share.options.follows_host);
    following.zip(clones).for_each(|(share, clone)| share.source = clone);
    Ok(())
}

/// Opens the root file system. Its share is always writable: the guest creates mount points in it. If the specification says so, it is
/// read-only from then on, for the guest and for the VMM.
fn open_rootfs(id: &ContainerId, bundle: &Bundle, spec: &mut Spec) -> Result<Share, ShareError> {
    let path = bundle.rootfs();
    let source = open(&path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let failed = |source: io::Error| ShareError::Rootfs { path: path.clone(), source };
    let source = source.map_err(|error| failed(error.into()))?;
    if let Some(kind) = kernel_view(&source).map_err(|error| failed(error.into()))? {
        return Err(ShareError::KernelView { path, kind });
    }
    let options = ShareOptions { read_only: false, follows_host: true };
    let share = Share { name: format!("{id}/rootfs"), options, source };
    if let Some(root) = spec.root_mut() {
        root.set_path(guest_path(&share.name));
    }
    Ok(share)
}

fn open_source(bundle: &Path, mount: &Mount) -> Result<MountSource, ShareError> {
    let source = mount.source().as_ref().filter(|source| !source.as_os_str().is_empty());
    let path = bundle.join(source.ok_or_else(|| ShareError::NoSource(mount.destination().clone()))?);
    if let Some(option) = options(mount).find(|option| matches!(*option, "shared" | "rshared")) {
        return Err(ShareError::Shared { option: option.into(), destination: mount.destination().clone() });
    }
    let open = || {
        let fd = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let stat = fstat(&fd)?;
        Ok((fd, stat))
    };
    let (fd, stat) = open().map_err(|error: Errno| failed(&path, mount)(error.into()))?;
    Ok(MountSource { path, fd, stat })
}

/// Returns a function that makes an error about the source of `mount`, for `map_err`.
fn failed(path: &Path, mount: &Mount) -> impl Fn(io::Error) -> ShareError + use<> {
    let (path, destination) = (path.to_owned(), mount.destination().clone());
    move |source| ShareError::Source { path: path.clone(), destination: destination.clone(), source }
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn guest_source(
    id: &ContainerId,
    name: &str,
    mount: &Mount,
    MountSource { path, fd, stat }: MountSource,
) -> Result<GuestSource, ShareError> {
    match special::guest_replacement(name, &stat, &fd) {
        Err(reason) => Err(ShareError::Special { path, reason }),
        Ok(Some((file, is_socket))) => Ok(GuestSource::Special(file, is_socket.then_some(fd))),
        Ok(None) => {
            let read_only = options(mount).any(|option| option == "ro" || option == "rro");
            let below = id_mapped_mounts::mounts_below(&fd, mount).map_err(failed(&path, mount))?;
            let follows_host = follows_host(mount);
            let clone = |fd: OwnedFd| mount_trees::clone(Source { root: fd.as_fd(), read_only }, is_recursive(mount));
            let source = if follows_host { fd } else { clone(fd).map_err(failed(&path, mount))? };
            let options = ShareOptions { read_only, follows_host };
            Ok(GuestSource::Share(Share { name: format!("{id}/{name}"), options, source }, below))
        }
    }
}

/// Whether later mounts of the host below the source appear in the container. Then the clone that the VMM serves is made in the VMM's
/// mount namespace, which exists later.
fn follows_host(mount: &Mount) -> bool {
    is_recursive(mount) && !options(mount).any(|option| matches!(option, "private" | "rprivate"))
}

/// The path of the share `share` in the guest.
fn guest_path(share: &str) -> PathBuf {
    Path::new(agent::SHARES_DIR).join(share)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use serde_json::{Value, json};

    use super::*;
    use crate::spec::bundle::CONFIG_FILE;

    fn bundle(mounts: &Value) -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        let mut spec: Value = serde_json::from_str(crate::spec::STARTER).unwrap();
        spec["mounts"] = mounts.clone();
        fs::write(dir.path().join(CONFIG_FILE), spec.to_string()).unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let log = crate::base::log::Log::new(None, crate::base::log::Format::Text, false).unwrap();
        let bundle = Bundle::load(dir.path(), None, &log).unwrap();
        (dir, bundle)
    }

    fn open_one(mount: &Value) -> Result<HostFiles, ShareError> {
        let (_guard, bundle) = bundle(&json!([mount]));
        open_all(&"web".parse().unwrap(), &bundle)
    }

    #[test]
    fn sources_are_replaced_with_paths_in_the_guest() {
        let (_guard, bundle) = bundle(&json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/a", "type": "bind", "source": "file", "options": ["ro"]},
            {"destination": "/b", "type": "none", "source": "rootfs", "options": ["rbind"]},
        ]));
        let HostFiles { spec, shares, .. } = open_all(&"web".parse().unwrap(), &bundle).unwrap();
        let names: Vec<_> = shares.iter().map(|share| (share.name.as_str(), share.options.read_only)).collect();
        assert_eq!(names, [("web/rootfs", false), ("web/volume-0", true), ("web/volume-1", false)]);
        assert_eq!(spec.root().as_ref().unwrap().path(), Path::new("/run/vmrt/shares/web/rootfs"));
        let sources: Vec<_> = spec.mounts().iter().flatten().map(|mount| mount.source().clone().unwrap()).collect();
        let expected = ["proc", "/run/vmrt/shares/web/volume-0", "/run/vmrt/shares/web/volume-1"];
        assert_eq!(sources, expected.map(PathBuf::from));
    }

    #[test]
    fn an_error_names_the_missing_source() {
        let error = open_one(&json!({"destination": "/x", "type": "bind", "source": "/nonexistent"})).unwrap_err();
        assert_eq!(error.to_string(), "error mounting \"/nonexistent\" to rootfs at \"/x\"");
        let error = open_one(&json!({"destination": "/x", "type": "bind"})).unwrap_err();
        assert_eq!(error.to_string(), "mount /x has no source");
        let (_guard, bundle) = bundle(&json!([]));
        fs::remove_dir(bundle.rootfs()).unwrap();
        assert!(matches!(open_all(&"web".parse().unwrap(), &bundle), Err(ShareError::Rootfs { .. })));
    }

    #[test]
    fn shared_propagation_is_refused_with_the_name_of_the_option() {
        let mount = json!({"destination": "/x", "type": "bind", "source": "/", "options": ["rbind", "rshared"]});
        let error = open_one(&mount).unwrap_err().to_string();
        assert!(error.starts_with("mount option rshared of /x is refused"), "{error}");
    }

    #[test]
    fn the_guest_creates_special_files_itself() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let files = open_one(&json!({"destination": "/x", "type": "bind", "source": socket})).unwrap();
        assert_eq!((files.shares.len(), files.special.len(), files.sockets.len()), (1, 1, 1));
        let source = files.spec.mounts().as_ref().unwrap()[0].source().clone();
        assert_eq!(source, Some("/run/vmrt/special/web/volume-0".into()));
        let error = open_one(&json!({"destination": "/x", "type": "bind", "source": "/dev/kvm"})).unwrap_err();
        assert!(error.to_string().starts_with("mount /dev/kvm cannot be shared"), "{error}");
    }

    #[test]
    fn views_of_the_hosts_kernel_are_replaced_or_refused_by_name() {
        let mount = |source: &str| json!({"destination": "/x", "type": "bind", "source": source, "options": ["ro"]});
        let files = open_one(&mount("/proc")).unwrap();
        assert_eq!((files.shares.len(), files.special.len()), (1, 0));
        assert_eq!(files.guest_views, [("/proc".into(), "/x".into())]);
        let error = open_one(&mount("/proc/self/ns/uts")).unwrap_err().to_string();
        let expected = "mount /proc/self/ns/uts cannot be shared with a virtual machine: \
            it is on nsfs, a view of the host's kernel";
        assert_eq!(error, expected);
        let (_guard, mut bundle) = bundle(&json!([]));
        bundle.spec.root_mut().as_mut().unwrap().set_path("/proc".into());
        let error = open_all(&"web".parse().unwrap(), &bundle).unwrap_err();
        assert!(matches!(error, ShareError::KernelView { kind: "proc", .. }), "{error}");
    }

    #[test]
    fn a_remount_has_no_source() {
        let mount = json!({"destination": "/proc", "type": "bind", "options": ["bind", "remount", "ro"]});
        assert_eq!(open_one(&mount).unwrap().shares.len(), 1);
    }
}
