//! The fuzzing targets of the file server: any requests of a guest, and any saved states.

mod requests;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use virtio_queue::DescriptorChain;

use super::device::chain::buffers;
use super::server::state::FsState;
use super::{FsError, Limits, ProcFds, Server, SharesHandle};
use crate::arch::Memory;
use crate::config::ShareOptions;
use crate::virtio::fuzz::Input;

const LIMITS: Limits = Limits { inodes: 64, handles: 16 };

/// A directory with two shares, and a directory outside of them that the guest can neither read nor change.
struct Host {
    directory: TempDir,
    shares: SharesHandle,
}

const SECRET: &[u8] = b"not shared: 5f1d7";

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["share", "share/d", "fixed", "outside"] {
            fs::create_dir(path(name)).expect("a new directory");
        }
        fs::write(path("share/a"), [7; 5000]).expect("a new file");
        fs::write(path("fixed/a"), b"read only").expect("a new file");
        fs::write(path("outside/secret"), SECRET).expect("a new file");
        symlink("../outside/secret", path("share/link")).expect("a new link");
        symlink("../outside", path("share/d/up")).expect("a new link");
        let shares = SharesHandle::new();
        let fixed = ShareOptions { read_only: true, ..ShareOptions::default() };
        shares.add("c/share", open_path(&path("share")), ShareOptions::default()).expect("a new name");
        shares.add("c/fixed", open_path(&path("fixed")), fixed).expect("a new name");
        Self { directory, shares }
    }

    fn server(&self) -> Result<Server, FsError> {
        Ok(Server::new(self.shares.clone(), LIMITS, ProcFds::open()?, None))
    }

    /// Adds a share of the first share's directory, if there is none of this name.
    fn add(&self, name: &str) {
        let _ = self.shares.add(name, open_path(&self.directory.path().join("share")), ShareOptions::default());
    }

    /// Nothing outside of the shares, and nothing in the read-only share, has changed.
    fn check(&self) {
        let content = |name: &str| fs::read(self.directory.path().join(name)).expect("the file exists");
        let count = |name: &str| fs::read_dir(self.directory.path().join(name)).expect("a directory").count();
        assert_eq!((content("outside/secret"), content("fixed/a")), (SECRET.to_vec(), b"read only".to_vec()));
        assert_eq!(["", "outside", "fixed"].map(count), [3, 1, 1]);
    }
}

fn open_path(path: &Path) -> OwnedFd {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).expect("the directory exists")
}

/// Requests in the order of the input.
pub(crate) fn requests(data: &[u8]) {
    let host = Host::new();
    let mut client = requests::Client::new(host.server().expect("procfs"));
    let mut input = Input::new(data);
    while let Some(step) = input.step() {
        match step {
            0xff => client.restore(&host),
            // The sandbox removes a share.
            0xfe => drop(host.shares.remove("c/fixed")),
            // It adds one.
            0xfd => host.add("e/new"),
            _ => client.request(step, &mut input),
        }
    }
    host.check();
}

/// A server in any saved state, and the requests that follow it after a line feed.
pub(crate) fn state(data: &[u8]) {
    restores(data);
}

/// Returns whether the server is restored.
fn restores(data: &[u8]) -> bool {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let Ok(state) = serde_json::from_slice::<FsState>(&data[..end]) else { return false };
    let host = Host::new();
    let server = host.server().expect("procfs");
    let is_restored = server.restore(&state).is_ok();
    if is_restored {
        let mut client = requests::Client::new(server);
        client.restore(&host);
        host.add("e/new");
        let mut input = Input::new(data.get(end + 1..).unwrap_or_default());
        while let Some(step) = input.step() {
            client.request(step, &mut input);
        }
    }
    host.check();
    is_restored
}

/// The buffers of a chain are all its descriptors, the readable ones first.
pub(crate) fn chain<'m>(chain: &DescriptorChain<&'m Memory>, memory: &'m Memory) {
    let Some((request, reply)) = buffers(chain.clone(), memory) else { return };
    let length = |writable| {
        let descriptors = chain.clone().filter(|descriptor| descriptor.is_write_only() == writable);
        descriptors.map(|descriptor| u64::from(descriptor.len())).sum::<u64>()
    };
    assert_eq!((request.len() as u64, reply.len() as u64), (length(false), length(true)));
}

#[cfg(test)]
mod tests {
    use agent::fuzz::committed;

    use super::*;

    #[test]
    fn committed_states_are_those_of_a_server() {
        // Nodes that are not found and not open are left out, and so are ids that no directory of a container has.
        for name in ["open", "ids", "wrong", "container_id_out_of_range"] {
            assert!(restores(&committed("fs_state", name)), "{name}");
        }
    }
}
