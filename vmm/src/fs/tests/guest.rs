//! A raw FUSE client in place of a guest.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use vm_memory::VolatileSlice;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::config::ShareOptions;
use crate::fs::protocol::buffers::Buffers;
use crate::fs::protocol::wire::*;
use crate::fs::server::{Limits, Server};
use crate::fs::tables::shares::SharesHandle;
use crate::fs::worker::Worker;
use crate::fs::worker::proc_fds::ProcFds;
use crate::fs::{FsError, FsState};

/// A reply's body, or its error number.
pub(super) type Answer = Result<Vec<u8>, i32>;

/// A server of one share, `c/share`, in its own directory, and the client.
pub(super) struct Guest {
    pub(super) server: Server,
    pub(super) shares: SharesHandle,
    pub(super) worker: Worker,
    /// The node id of the share's root.
    pub(super) root: u64,
    /// The caller's ids.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Extensions after the arguments.
    pub(super) extensions: Vec<u8>,
    unique: u64,
    directory: TempDir,
}

pub(super) fn open_path(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

impl Guest {
    /// A client with a session, and a read-write share.
    pub(super) fn new() -> Self {
        Self::with(Limits { inodes: 1000, handles: 100 }, false)
    }

    pub(super) fn with(limits: Limits, read_only: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let shares = SharesHandle::new();
        shares
            .add("c/share", open_path(directory.path()), ShareOptions { read_only, ..ShareOptions::default() })
            .unwrap();
        let server = Server::new(shares.clone(), limits, ProcFds::open().unwrap(), None);
        Self::of(server, shares, directory)
    }

    fn of(server: Server, shares: SharesHandle, directory: TempDir) -> Self {
        let worker = Worker::for_current_thread(server.proc_fds()).unwrap();
        let extensions = Vec::new();
        let mut guest = Self { server, shares, worker, root: 0, uid: 0, gid: 0, extensions, unique: 0, directory };
        guest.init().unwrap();
        guest.find_root();
        guest
    }

    /// The same client with a new server, restored from the first one's saved state.
    pub(super) fn restored(self) -> Result<Self, FsError> {
        let saved = self.server.save();
        self.restored_from(&saved)
    }

    /// The same client with a new server, restored from `saved`.
    pub(super) fn restored_from(self, saved: &FsState) -> Result<Self, FsError> {
        let saved = serde_json::to_string(saved).unwrap();
        let Self { shares, directory, root, .. } = self;
        let limits = Limits { inodes: 1000, handles: 100 };
        let server = Server::new(shares.clone(), limits, ProcFds::open().unwrap(), None);
        server.restore(&serde_json::from_str(&saved).unwrap())?;
        let worker = Worker::for_current_thread(server.proc_fds())?;
        Ok(Self { server, shares, worker, root, uid: 0, gid: 0, extensions: Vec::new(), unique: 0, directory })
    }

    pub(super) fn init(&mut self) -> Answer {
        let args = InitIn { major: MAJOR, minor: MINOR, max_readahead: 1 << 17, flags: u32::MAX };
        self.call(op::INIT, 0, &[args.as_bytes(), &[0xff; 4], &[0; 44]])
    }

    pub(super) fn find_root(&mut self) {
        let container = self.lookup(ROOT_ID, "c").unwrap();
        self.root = self.lookup(container.nodeid, "share").unwrap().nodeid;
    }

    /// The host's path of `path` in the share.
    pub(super) fn host(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub(super) fn header(&mut self, opcode: u32, nodeid: u64, body: usize) -> InHeader {
        self.unique += 1;
        InHeader {
            len: u32::try_from(IN_HEADER + body).unwrap(),
            opcode,
            unique: self.unique,
            nodeid,
            uid: self.uid,
            gid: self.gid,
            pid: 1,
            total_extlen: u16::try_from(self.extensions.len() / 8).unwrap(),
            padding: 0,
        }
    }

    /// Sends a request and returns the reply's body.
    pub(super) fn call(&mut self, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> Answer {
        let mut body = parts.concat();
        body.extend(&self.extensions);
        let header = self.header(opcode, nodeid, body.len());
        let mut space = vec![0; 2 << 20];
        let length = self.raw(&[header.as_bytes(), &body], &mut space);
        assert!(length >= OUT_HEADER, "no reply");
        let (out, _) = OutHeader::read_from_prefix(&space).unwrap();
        assert_eq!((out.unique, usize::try_from(out.len).unwrap()), (header.unique, length));
        if out.error != 0 { Err(-out.error) } else { Ok(space[OUT_HEADER..length].to_vec()) }
    }

    /// Sends bytes unchanged, in as many segments as `parts`. Returns the length of the reply in `space`.
    pub(super) fn raw(&mut self, parts: &[&[u8]], space: &mut [u8]) -> usize {
        let mut copies: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let request: Buffers<'_> = copies.iter_mut().map(|part| VolatileSlice::from(&mut part[..])).collect();
        let reply = std::iter::once(VolatileSlice::from(space)).collect();
        self.server.handle(&mut self.worker, request, reply)
    }

    fn get<T: FromBytes>(answer: Answer) -> Result<T, i32> {
        answer.map(|body| T::read_from_prefix(&body).unwrap().0)
    }

    /// A request whose reply is one structure.
    pub(super) fn ask<T: FromBytes>(
        &mut self,
        opcode: u32,
        nodeid: u64,
        args: &(impl IntoBytes + Immutable),
        rest: &[u8],
    ) -> Result<T, i32> {
        Self::get(self.call(opcode, nodeid, &[args.as_bytes(), rest]))
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        Self::get(self.call(op::LOOKUP, parent, &[&nul(name)]))
    }

    pub(super) fn open(&mut self, node: u64, flags: i32) -> Result<OpenOut, i32> {
        let flags = u32::try_from(flags).unwrap();
        self.ask(op::OPEN, node, &OpenIn { flags, open_flags: 0 }, &[])
    }

    pub(super) fn create(&mut self, name: &str, flags: i32, mode: u32) -> Result<(EntryOut, OpenOut), i32> {
        let args = CreateIn { flags: u32::try_from(flags).unwrap(), mode, umask: 0o022, open_flags: 0 };
        let body = self.call(op::CREATE, self.root, &[args.as_bytes(), &nul(name)])?;
        let (entry, rest) = EntryOut::read_from_prefix(&body).unwrap();
        Ok((entry, OpenOut::read_from_prefix(rest).unwrap().0))
    }

    pub(super) fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8], write_flags: u32) -> Result<u32, i32> {
        let size = u32::try_from(data.len()).unwrap();
        let args = WriteIn { fh, offset, size, write_flags, ..WriteIn::default() };
        self.ask::<WriteOut>(op::WRITE, node, &args, data).map(|out| out.size)
    }

    pub(super) fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Answer {
        let args = ReadIn { fh, offset, size, ..ReadIn::default() };
        self.call(op::READ, node, &[args.as_bytes()])
    }

    pub(super) fn setattr(&mut self, node: u64, args: SetattrIn) -> Result<Attr, i32> {
        self.ask::<AttrOut>(op::SETATTR, node, &args, &[]).map(|out| out.attr)
    }

    pub(super) fn forget(&mut self, node: u64, nlookup: u64) {
        let header = self.header(op::FORGET, node, 8);
        assert_eq!(self.raw(&[header.as_bytes(), ForgetIn { nlookup }.as_bytes()], &mut [0; 64]), 0);
    }

    /// All entries of a directory, read with `opcode`. With `READDIRPLUS`, includes their node ids.
    pub(super) fn list(&mut self, opcode: u32, node: u64, size: u32) -> Vec<(String, u64)> {
        let open: OpenOut = self.ask(op::OPENDIR, node, &OpenIn::default(), &[]).unwrap();
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let args = ReadIn { fh: open.fh, offset, size, ..ReadIn::default() };
            let body = self.call(opcode, node, &[args.as_bytes()]).unwrap();
            if body.is_empty() {
                break;
            }
            let mut rest = &body[..];
            while !rest.is_empty() {
                let mut inode = EntryOut::default();
                if opcode == op::READDIRPLUS {
                    (inode, rest) = EntryOut::read_from_prefix(rest).unwrap();
                }
                let (dirent, names) = Dirent::read_from_prefix(rest).unwrap();
                let length = usize::try_from(dirent.namelen).unwrap();
                all.push((String::from_utf8(names[..length].to_vec()).unwrap(), inode.nodeid));
                offset = dirent.off;
                rest = &names[aligned(length)..];
            }
        }
        let args = ReleaseIn { fh: open.fh, ..ReleaseIn::default() };
        self.call(op::RELEASEDIR, node, &[args.as_bytes()]).unwrap();
        all
    }
}

/// A string as the protocol sends it.
pub(super) fn nul(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// Everything below `path`, to show that nothing changed: name, mode, owner, size, and whether it is a device.
pub(super) fn tree_state(path: &Path) -> Vec<(PathBuf, u32, u32, u64, bool)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let stat = entry.metadata().unwrap();
        let device = stat.file_type().is_char_device() || stat.file_type().is_block_device();
        all.push((entry.path(), stat.mode(), stat.uid(), stat.size(), device));
        if stat.is_dir() {
            all.extend(tree_state(&entry.path()));
        }
    }
    all.sort();
    all
}
