//! What each request does, by subject.

mod attributes;
mod directories;
mod files;
mod names;
mod xattrs;

use rustix::io::Errno;

use super::inodes::Place;
use super::server::Server;
use super::shares::is_synthetic;

/// How long the guest may use names and attributes without asking again, in seconds. What the host changes is seen
/// that much later at most.
const CACHE_SECONDS: u64 = 1;

impl Server {
    /// The inode `id` of a share. A synthetic directory takes no request that ends up here: `EROFS`.
    fn node(&self, id: u64) -> Result<Place, Errno> {
        if is_synthetic(id) { Err(Errno::ROFS) } else { self.inodes.place(id) }
    }

    /// The inode `id` of a share that may be changed.
    fn writable_node(&self, id: u64) -> Result<Place, Errno> {
        let node = self.node(id)?;
        if node.share.options.read_only { Err(Errno::ROFS) } else { Ok(node) }
    }
}
