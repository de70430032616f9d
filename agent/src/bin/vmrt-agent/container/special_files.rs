//! Special files of a container: devices and sockets that represent files of the host which cannot be shared.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agent::{AttachedFile, SpecialFile, SpecialKind};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::Error;
use crate::events::Poll;
use crate::machine::{file_systems, loop_devices};
use crate::streams::listener::Listener;
use crate::sys::files;

/// Length of the queue of connections that are not accepted yet.
const BACKLOG: i32 = 128;

/// The special files of one container. Dropping the value removes them.
#[derive(Default)]
pub(crate) struct SpecialFiles {
    directory: Option<PathBuf>,
    listeners: Vec<Listener>,
}

impl Drop for SpecialFiles {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            // A remaining directory matters only to a later container with the same id.
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

impl SpecialFiles {
    /// Makes the special files of `container`. Connections to its sockets become events of `poll`.
    pub(crate) fn make(container: &str, files: &[AttachedFile], poll: &Poll) -> Result<Self, Error> {
        let mut made = Self::default();
        for AttachedFile { file, port } in files {
            let path = file.path(container);
            let (directory, name) = path.parent().zip(path.file_name()).ok_or_else(|| invalid(file))?;
            if made.directory.is_none() {
                file_systems::mount_special()?;
                files::make_directories(directory)?;
                made.directory = Some(directory.to_owned());
            }
            match file.kind {
                SpecialKind::Device { major, minor } => {
                    make_device(&path, FileType::CharacterDevice, major, minor)?;
                }
                SpecialKind::BlockDevice { major, minor } => {
                    loop_devices::add_for_node(FileType::BlockDevice, rustix::fs::makedev(major, minor))?;
                    make_device(&path, FileType::BlockDevice, major, minor)?;
                }
                SpecialKind::Socket => {
                    let port = port.ok_or_else(|| invalid(file))?;
                    let socket = listen(directory, Path::new(name)).map_err(Error::on("make socket", &path))?;
                    made.listeners.push(Listener::new(socket, port, poll)?);
                }
            }
            set_owner_and_mode(&path, file).map_err(Error::on("set the owner of", &path))?;
        }
        Ok(made)
    }

    /// The listeners behind the sockets.
    pub(crate) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }
}

fn make_device(path: &Path, kind: FileType, major: u32, minor: u32) -> Result<(), Error> {
    rustix::fs::mknodat(CWD, path, kind, Mode::empty(), rustix::fs::makedev(major, minor))
        .map_err(Error::on("make device", path))
}

fn invalid(file: &SpecialFile) -> Error {
    Error::invalid(format!("special file {:?}", file.name), "has an invalid path or no port")
}

/// Makes a listening socket. Its address is relative to `directory`, because the length of socket addresses is limited.
fn listen(directory: &Path, name: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::process::chdir(directory)?;
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(name)?);
    rustix::process::chdir("/")?;
    bound?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Applies the owner and the mode that the file has on the host.
fn set_owner_and_mode(path: &Path, file: &SpecialFile) -> rustix::io::Result<()> {
    rustix::fs::chown(path, Some(Uid::from_raw(file.uid)), Some(Gid::from_raw(file.gid)))?;
    rustix::fs::chmod(path, Mode::from_raw_mode(file.mode & 0o7777))
}
