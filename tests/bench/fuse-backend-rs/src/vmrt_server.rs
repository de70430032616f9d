//! vmrt's FUSE server.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use vm_memory::VolatileSlice;
use vmm::config::ShareOptions;
use vmm::fs::{Buffers, Limits, Server, SharesHandle, Worker};

use crate::Backend;

pub struct VmrtServer {
    server: Server,
    worker: Worker,
    request: Vec<u8>,
    header: Vec<u8>,
    data: Vec<u8>,
}

impl VmrtServer {
    pub fn new(directory: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let shares = SharesHandle::new();
        shares.add("c/share", File::open(directory)?.into(), ShareOptions::default())?;
        let server = Server::new(shares, Limits { inodes: 100_000, handles: 1000 })?;
        let worker = Worker::for_current_thread(server.proc_fds())?;
        Ok(Self { server, worker, request: Vec::new(), header: vec![0; 16], data: vec![0; 1 << 20] })
    }
}

impl Backend for VmrtServer {
    fn name(&self) -> &'static str {
        "vmrt"
    }

    fn root_path(&self) -> &'static [&'static str] {
        &["c", "share"]
    }

    fn call(&mut self, request: &[u8], room: usize, reply: &mut Vec<u8>) -> u64 {
        self.request.clear();
        self.request.extend(request);
        let start = Instant::now();
        let request: Buffers<'_> = self.request.chunks_mut(4096).map(VolatileSlice::from).collect();
        let pages = self.data[..room].chunks_mut(4096);
        let space: Buffers<'_> = std::iter::once(&mut self.header[..]).chain(pages).map(VolatileSlice::from).collect();
        let length = self.server.handle(&mut self.worker, request, space);
        let time = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        reply.clear();
        if length > 0 {
            reply.extend(&self.header);
            reply.extend(&self.data[..length - 16]);
        }
        time
    }
}
