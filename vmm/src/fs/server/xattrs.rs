//! Extended attributes.
//!
//! The guest sees the attributes that mean the same in a container on the host: `user.*`, ACLs and file capabilities.
//! The host's `trusted.*` and the labels of security modules control the host's kernel (overlay redirects, MAC labels),
//! so they are hidden. The guest has its own `trusted.*`, which its kernel shows only to privileged processes. On the
//! host their names start with `user.vmrt.`, and they have no meaning to the host's kernel.

use std::borrow::Cow;
use std::ffi::{CStr, CString};

use rustix::fs::{AtFlags, CWD, Mode, XattrFlags};
use rustix::io::Errno;

use super::Server;
use crate::fs::protocol::reply::Reply;
use crate::fs::protocol::request::Request;
use crate::fs::protocol::wire::{GetxattrIn, GetxattrOut, SETXATTR_ACL_KILL_SGID, SetxattrIn, init};
use crate::fs::tables::inode::InodeFd;
use crate::fs::worker::Worker;
use crate::fs::worker::proc_fds::fd_name;

/// The longest value, and the longest list of names, in bytes (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_VALUE: usize = 64 << 10;

const TRUSTED: &[u8] = b"trusted.";
/// The prefix on the host of the guest's `trusted.*` attributes.
const GUEST_TRUSTED: &[u8] = b"user.vmrt.trusted.";

impl Server {
    pub(super) fn getxattr(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let GetxattrIn { size, .. } = request.take()?;
        let name = host_name(request.last_string()?)?;
        if self.has_no_host_file(request.header.nodeid)? {
            return Err(Errno::NODATA);
        }
        let inode = self.inode(request.header.nodeid)?;
        let capacity = usize::try_from(size).map_err(|_| Errno::INVAL)?.min(MAX_VALUE);
        if capacity == 0 {
            return put_size(rustix::fs::getxattr_query(fd_name(&inode), &*name)?, reply);
        }
        worker.scratch.resize(capacity, 0);
        let length = rustix::fs::getxattr(fd_name(&inode), &*name, worker.scratch.as_mut_slice())?;
        reply.put_bytes(&worker.scratch[..length])
    }

    pub(super) fn listxattr(
        &self,
        worker: &mut Worker,
        request: &mut Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let GetxattrIn { size, .. } = request.take()?;
        let names = if self.has_no_host_file(request.header.nodeid)? {
            Vec::new()
        } else {
            visible_names(&self.inode(request.header.nodeid)?, &mut worker.scratch)?
        };
        match usize::try_from(size).map_err(|_| Errno::INVAL)? {
            0 => put_size(names.len(), reply),
            capacity if names.len() > capacity => Err(Errno::RANGE),
            _ => reply.put_bytes(&names),
        }
    }

    pub(super) fn setxattr(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let SetxattrIn { size, flags, setxattr_flags, .. } = self.take_setxattr(request)?;
        let name = request.string()?;
        let value = request.last_bytes(size)?;
        let name = host_name(name)?;
        let flags = XattrFlags::from_bits_retain(flags);
        let inode = self.writable_inode(request.header.nodeid)?;
        let set = || rustix::fs::setxattr(fd_name(&inode), &*name, value, flags);
        if setxattr_flags & SETXATTR_ACL_KILL_SGID == 0 {
            return set();
        }
        // The kernel clears setgid if the caller is not in the file's group and lacks `CAP_FSETID`. The guest's kernel
        // has checked that, and does not send the caller's ids.
        set()?;
        let mode = Mode::from_raw_mode(inode.stat()?.stx_mode.into());
        if !mode.contains(Mode::SGID) {
            return Ok(());
        }
        rustix::fs::chmodat(CWD, fd_name(&inode), mode - Mode::SGID, AtFlags::empty())
    }

    /// Consumes `setxattr_in` from the arguments. It is shorter without `SETXATTR_EXT`.
    fn take_setxattr(&self, request: &mut Request<'_>) -> Result<SetxattrIn, Errno> {
        if self.negotiated(init::SETXATTR_EXT) {
            return request.take();
        }
        let [size, flags]: [u32; 2] = request.take()?;
        Ok(SetxattrIn { size, flags, ..SetxattrIn::default() })
    }

    pub(super) fn removexattr(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let name = host_name(request.last_string()?)?;
        let inode = self.writable_inode(request.header.nodeid)?;
        rustix::fs::removexattr(fd_name(&inode), &*name)
    }
}

fn is_shared(name: &[u8]) -> bool {
    name.starts_with(b"user.") && !name.starts_with(GUEST_TRUSTED)
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

/// The host's name of the guest's attribute `name`.
fn host_name(name: &CStr) -> Result<Cow<'_, CStr>, Errno> {
    let bytes = name.to_bytes();
    if let Some(rest) = bytes.strip_prefix(TRUSTED) {
        let name = CString::new([GUEST_TRUSTED, rest].concat()).map_err(|_| Errno::INVAL)?;
        return Ok(Cow::Owned(name));
    }
    if is_shared(bytes) { Ok(Cow::Borrowed(name)) } else { Err(Errno::OPNOTSUPP) }
}

/// The guest's name of the host's attribute `name`, as prefix and rest, if the guest may see it.
fn guest_name(name: &[u8]) -> Option<[&[u8]; 2]> {
    match name.strip_prefix(GUEST_TRUSTED) {
        Some(rest) => Some([TRUSTED, rest]),
        None => is_shared(name).then_some([b"", name]),
    }
}

/// The names that the guest may see, each followed by a NUL.
fn visible_names(inode: &InodeFd, scratch: &mut Vec<u8>) -> Result<Vec<u8>, Errno> {
    scratch.resize(MAX_VALUE, 0);
    let length = rustix::fs::listxattr(fd_name(inode), scratch.as_mut_slice())?;
    let names = scratch[..length].split(|byte| *byte == 0).filter_map(guest_name);
    Ok(names.flat_map(|[start, rest]| [start, rest, b"\0"]).flatten().copied().collect())
}

fn put_size(length: usize, reply: &mut Reply<'_>) -> Result<(), Errno> {
    let size = u32::try_from(length).map_err(|_| Errno::RANGE)?;
    reply.put(&GetxattrOut { size, padding: 0 })
}
