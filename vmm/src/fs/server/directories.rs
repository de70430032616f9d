//! Directories: `OPENDIR`, `READDIR` and `READDIRPLUS`.

use std::ffi::CStr;
use std::sync::Mutex;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::Server;
use super::names::entry_of;
use crate::fs::protocol::reply::Reply;
use crate::fs::protocol::request::Request;
use crate::fs::protocol::wire::{Dirent, EntryOut, OpenOut, ROOT_ID, ReadIn, aligned};
use crate::fs::tables::directory_stream::DirectoryStream;
use crate::fs::tables::handles::Handle;
use crate::fs::tables::inode::InodeFd;
use crate::fs::tables::shares::is_synthetic;

/// A reply to `READDIR` or `READDIRPLUS` that is being written.
struct Listing<'r, 'm> {
    reply: &'r mut Reply<'m>,
    /// The space left in bytes.
    remaining: usize,
    /// Whether each entry includes its inode (`READDIRPLUS`).
    plus: bool,
}

impl Listing<'_, '_> {
    /// Whether an entry of this name fits in the space left.
    fn fits(&self, name: &[u8]) -> bool {
        self.length(name) <= self.remaining
    }

    fn length(&self, name: &[u8]) -> usize {
        let plus = if self.plus { size_of::<EntryOut>() } else { 0 };
        plus + aligned(size_of::<Dirent>() + name.len())
    }

    /// Appends an entry that fits. If `entry_out` is all zeros, the guest looks the name up itself.
    fn push(&mut self, entry_out: &EntryOut, dirent: (u64, u64, u8), name: &[u8]) -> Result<(), Errno> {
        let (ino, off, kind) = dirent;
        let namelen = u32::try_from(name.len()).map_err(|_| Errno::IO)?;
        let dirent = Dirent { ino, off, namelen, kind: kind.into() };
        self.remaining -= self.length(name);
        if self.plus {
            self.reply.put(entry_out)?;
        }
        self.reply.put_bytes(dirent.as_bytes())?;
        self.reply.put_bytes(name)?;
        let padding = aligned(name.len()) - name.len();
        self.reply.put_bytes(&[0; 8][..padding])
    }
}

impl Server {
    pub(super) fn opendir(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let id = request.header.nodeid;
        let handle = if is_synthetic(id) {
            Handle::Synthetic { id, entries: self.shares.entries(id).ok_or(Errno::STALE)? }
        } else {
            self.directory_handle(self.inodes.get_with_fd(id)?)?
        };
        let fh = self.handles.insert(handle)?;
        reply.put(&OpenOut { fh, ..OpenOut::default() })
    }

    /// Opens a directory of a share for reading.
    pub(super) fn directory_handle(&self, inode: InodeFd) -> Result<Handle, Errno> {
        if inode.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if inode.kernel_view {
            return Ok(Handle::Synthetic { id: inode.id, entries: Vec::new() });
        }
        let directory = self.reopen(&inode, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK)?;
        let stream = Mutex::new(DirectoryStream::new(directory, self.directory_blocks.clone()));
        Ok(Handle::Directory { inode, stream })
    }

    pub(super) fn readdir(&self, request: &mut Request<'_>, reply: &mut Reply<'_>, plus: bool) -> Result<(), Errno> {
        let ReadIn { fh, offset, size, .. } = request.take()?;
        let remaining = usize::try_from(size).map_err(|_| Errno::INVAL)?.min(reply.remaining());
        let handle = self.handles.get(fh, request.header.nodeid)?;
        let mut listing = Listing { reply, remaining, plus };
        match &*handle {
            Handle::Synthetic { id, entries } => list_synthetic(*id, entries, offset, &mut listing),
            Handle::Directory { inode, .. } => {
                let mut stream = handle.stream()?;
                stream.seek(offset)?;
                let result = self.list(inode, &mut stream, &mut listing);
                stream.end_request();
                result
            }
            Handle::File { .. } => Err(Errno::NOTDIR),
        }
    }

    fn list(&self, inode: &InodeFd, stream: &mut DirectoryStream, listing: &mut Listing<'_, '_>) -> Result<(), Errno> {
        let wanted = listing.remaining;
        loop {
            let entry = match stream.peek() {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(()),
                // The entries before the error are returned first. The next request gets the error.
                Err(_) if listing.remaining < wanted => return Ok(()),
                Err(errno) => return Err(errno),
            };
            let name = entry.name.to_bytes();
            if !listing.fits(name) {
                return if listing.remaining < wanted { Ok(()) } else { Err(Errno::INVAL) };
            }
            // The parent of a share's root is hidden from the guest.
            let ino = if name == b".." { ROOT_ID } else { entry.ino };
            let entry_out = if listing.plus { self.entry_out_of(inode, entry.name) } else { EntryOut::default() };
            listing.push(&entry_out, (ino, entry.next, entry.kind), name)?;
            stream.advance();
        }
    }

    /// The inode of the entry `name`; all zeros if it cannot be looked up. The guest then looks it up itself if it
    /// needs it, and gets the error.
    fn entry_out_of(&self, parent: &InodeFd, name: &CStr) -> EntryOut {
        if matches!(name.to_bytes(), b"." | b"..") {
            return EntryOut::default();
        }
        self.lookup_child(parent, name).map(|(inode, stat)| entry_of(&inode, &stat)).unwrap_or_default()
    }
}

/// Lists a synthetic directory. Offsets are numbers of entries.
fn list_synthetic(id: u64, entries: &[(String, u64)], offset: u64, listing: &mut Listing<'_, '_>) -> Result<(), Errno> {
    let dots = [(".", id), ("..", ROOT_ID)];
    let all = dots.into_iter().chain(entries.iter().map(|(name, id)| (name.as_str(), *id)));
    let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
    for ((name, ino), next) in all.zip(1_u64..).skip(start) {
        if !listing.fits(name.as_bytes()) {
            break;
        }
        // Linux skips entries with inode number 0. The type of a share's root is not given, since it may be a file.
        let kind = if ino == 0 { libc::DT_UNKNOWN } else { libc::DT_DIR };
        listing.push(&EntryOut::default(), (ino.max(ROOT_ID), next, kind), name.as_bytes())?;
    }
    Ok(())
}
