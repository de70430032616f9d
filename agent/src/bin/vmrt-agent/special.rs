//! Files that stand in the guest for some of the host that cannot be shared: devices, and sockets behind each of which a
//! server of the host answers.

use std::fs::DirBuilder;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use agent::{AttachedFile, SpecialFile, SpecialKind};
use rustix::event::epoll::EventFlags;
use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::connection;
use crate::error::Error;
use crate::event_loop::{self, Agent, Source};
use crate::loop_devices;
use crate::machine;
use crate::processes::duplicate;
use crate::streams::Pump;

/// Connections that may wait to be taken.
const BACKLOG: i32 = 128;

/// Connections to all sockets together. The agent has few descriptors, and each takes four.
const MAX_CONNECTIONS: usize = 96;

/// Streams that belong to no process carry this pid.
const NOBODY: i32 = 0;

/// The special files of one container; gone when dropped.
#[derive(Default)]
pub(crate) struct SpecialFiles {
    directory: Option<PathBuf>,
    listeners: Vec<Listener>,
}

/// A socket of the guest that leads to the host.
pub(crate) struct Listener {
    id: u32,
    port: u32,
    socket: OwnedFd,
}

impl Drop for SpecialFiles {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            // What cannot be removed is in nobody's way until another container has this one's name.
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

impl Agent {
    /// Makes the special files of a container.
    pub(crate) fn make_special(&mut self, container: &str, files: &[AttachedFile]) -> Result<SpecialFiles, Error> {
        let mut made = SpecialFiles::default();
        for AttachedFile { file, port } in files {
            let path = file.path(container);
            let (directory, name) = path.parent().zip(path.file_name()).ok_or_else(|| no_name(file))?;
            if made.directory.is_none() {
                machine::mount_special()?;
                make_directories(directory)?;
                made.directory = Some(directory.to_owned());
            }
            match file.kind {
                SpecialKind::Device { major, minor } => {
                    make_device(&path, FileType::CharacterDevice, major, minor)?;
                }
                SpecialKind::BlockDevice { major, minor } => {
                    loop_devices::add_if(FileType::BlockDevice, rustix::fs::makedev(major, minor))?;
                    make_device(&path, FileType::BlockDevice, major, minor)?;
                }
                SpecialKind::Socket => {
                    let port = port.ok_or_else(|| no_name(file))?;
                    let socket = listen(directory, Path::new(name)).map_err(Error::on("make socket", &path))?;
                    made.listeners.push(self.add_listener(socket, port)?);
                }
            }
            give(&path, file).map_err(Error::on("set the owner of", &path))?;
        }
        Ok(made)
    }

    pub(crate) fn add_listener(&mut self, socket: OwnedFd, port: u32) -> Result<Listener, Error> {
        let id = self.take_stream_id();
        self.watch(socket.as_fd(), Source::Listener(id), EventFlags::IN | EventFlags::ET)?;
        Ok(Listener { id, port, socket })
    }

    /// Takes the connections that wait at a socket, and leads each to the host.
    pub(crate) fn accept(&mut self, id: u32) {
        loop {
            let mut listeners = self.containers.values().flat_map(|container| {
                let name_server = container.name_server.as_ref().map(|server| &server.listener);
                container.special.listeners.iter().chain(name_server)
            });
            let Some(listener) = listeners.find(|listener| listener.id == id) else { return };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let near = match rustix::net::accept_with(&listener.socket, flags) {
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(Errno::AGAIN) => return,
                accepted => accepted.map_err(Error::at("take a connection to a socket of the host")),
            };
            let stop = near.is_err();
            let port = listener.port;
            event_loop::warn(near.and_then(|near| self.lead(near, port)));
            if stop {
                return;
            }
        }
    }

    /// Who cannot be led to the host finds the connection closed.
    fn lead(&mut self, near: OwnedFd, port: u32) -> Result<(), Error> {
        let step = || format!("connect to a socket of the host by port {port}");
        if self.streams.values().filter(|stream| stream.pid == NOBODY).count() >= 2 * MAX_CONNECTIONS {
            return Err(Error::at(step())(Errno::MFILE));
        }
        let far = connection::connect(port).map_err(Error::at(step()))?;
        let (near_writer, far_writer) = (duplicate(&near)?, duplicate(&far)?);
        self.add_stream(Pump::new(near, far_writer), NOBODY)?;
        self.add_stream(Pump::new(far, near_writer), NOBODY).map(drop)
    }
}

fn make_device(path: &Path, kind: FileType, major: u32, minor: u32) -> Result<(), Error> {
    rustix::fs::mknodat(CWD, path, kind, Mode::empty(), rustix::fs::makedev(major, minor))
        .map_err(Error::on("make device", path))
}

fn no_name(file: &SpecialFile) -> Error {
    Error::invalid(format!("special file {:?}", file.name), "has no place, or leads nowhere")
}

/// Makes a directory of the guest's, and those it is in.
pub(crate) fn make_directories(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| Error::on("make directory", path)(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

/// Addresses of sockets are short: the directory is left out of this one's.
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

/// Gives the file the owner and the permissions it has on the host.
fn give(path: &Path, file: &SpecialFile) -> rustix::io::Result<()> {
    rustix::fs::chown(path, Some(Uid::from_raw(file.uid)), Some(Gid::from_raw(file.gid)))?;
    rustix::fs::chmod(path, Mode::from_raw_mode(file.mode & 0o7777))
}
