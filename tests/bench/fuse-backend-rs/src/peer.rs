//! fuse-backend-rs: its server with its passthrough file system, which gets requests through a virtqueue as from a device.

use std::path::Path;
use std::time::{Duration, Instant};

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use peer_virtio_queue::{Queue, QueueOwnedT, QueueT};
use peer_vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Backend;

/// Addresses in guest memory.
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const REQUEST: u64 = 1 << 20;
const HEADER: u64 = 4 << 20;
const DATA: u64 = 5 << 20;
const QUEUE_SIZE: u16 = 1024;

pub struct Peer {
    server: Server<PassthroughFs>,
    memory: GuestMemoryMmap,
    queue: Queue,
    avail_index: u16,
}

impl Peer {
    pub fn new(directory: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let config = Config {
            root_dir: directory.to_string_lossy().into_owned(),
            entry_timeout: Duration::from_secs(1),
            attr_timeout: Duration::from_secs(1),
            cache_policy: CachePolicy::Auto,
            xattr: true,
            killpriv_v2: true,
            enable_mntid: true,
            ..Config::default()
        };
        let file_system = PassthroughFs::new(config)?;
        file_system.import()?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)])?;
        let mut queue = Queue::new(QUEUE_SIZE)?;
        queue.try_set_desc_table_address(GuestAddress(0))?;
        queue.try_set_avail_ring_address(GuestAddress(AVAIL))?;
        queue.try_set_used_ring_address(GuestAddress(USED))?;
        queue.set_ready(true);
        Ok(Self { server: Server::new(file_system), memory, queue, avail_index: 0 })
    }

    /// Makes a descriptor chain available: the request and the space for the reply, page by page.
    fn make_available(&mut self, request: &[u8], room: usize) -> Result<(), Box<dyn std::error::Error>> {
        self.memory.write_slice(request, GuestAddress(REQUEST))?;
        let pages = |base: u64, length: usize, flags: u16| {
            (0..length).step_by(4096).map(move |at| (base + at as u64, (length - at).min(4096) as u32, flags))
        };
        let parts: Vec<_> =
            pages(REQUEST, request.len(), 0).chain([(HEADER, 16, 2)]).chain(pages(DATA, room, 2)).collect();
        for (index, (address, length, flags)) in parts.iter().enumerate() {
            let more = u16::from(index + 1 < parts.len());
            let at = GuestAddress(16 * index as u64);
            self.memory.write_obj(*address, at)?;
            self.memory.write_obj(*length, GuestAddress(at.0 + 8))?;
            self.memory.write_obj(flags | more, GuestAddress(at.0 + 12))?;
            self.memory.write_obj(index as u16 + 1, GuestAddress(at.0 + 14))?;
        }
        self.memory.write_obj(0_u16, GuestAddress(AVAIL + 4 + 2 * u64::from(self.avail_index % QUEUE_SIZE)))?;
        self.avail_index = self.avail_index.wrapping_add(1);
        self.memory.write_obj(self.avail_index, GuestAddress(AVAIL + 2))?;
        Ok(())
    }
}

impl Backend for Peer {
    fn name(&self) -> &'static str {
        "fuse-backend-rs"
    }

    fn root_path(&self) -> &'static [&'static str] {
        &[]
    }

    fn call(&mut self, request: &[u8], room: usize, reply: &mut Vec<u8>) -> u64 {
        self.make_available(request, room).expect("guest memory holds the request");
        let chain = self.queue.iter(&self.memory).expect("a good queue").next().expect("a chain");
        let start = Instant::now();
        let reader = Reader::from_descriptor_chain(&self.memory, chain.clone()).expect("a good chain");
        let writer = VirtioFsWriter::new(&self.memory, chain).expect("a good chain");
        let length = self.server.handle_message(reader, writer.into(), None, None).expect("an answer");
        let time = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        reply.resize(length, 0);
        if length > 0 {
            self.memory.read_slice(&mut reply[..16], GuestAddress(HEADER)).expect("in memory");
            self.memory.read_slice(&mut reply[16..], GuestAddress(DATA)).expect("in memory");
        }
        time
    }
}
