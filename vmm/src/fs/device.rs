//! The virtio-fs device: virtqueues and the threads that serve them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::process::{Resource, Rlimit};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::FsError;
use super::queue_thread::QueueThread;
use super::server::{Limits, Server};
use super::shares::SharesHandle;
use super::slow_lane::SlowLane;
use super::state::FsState;
use crate::virtio::device::{ActivateError, Activation, VirtQueue, VirtioDevice};

/// Length of the tag in the configuration space in bytes (virtio 1.2, 5.11.4).
const TAG_LENGTH: usize = 36;
/// Largest size of each queue. A request of 1 MiB takes about 260 descriptors where the driver uses no indirect ones.
const QUEUE_SIZE: u16 = 1024;

/// The virtio-fs device (virtio 1.2, 5.11): one queue for `FORGET`, one or more for requests.
#[derive(Debug)]
pub struct FsDevice {
    config: [u8; TAG_LENGTH + 4],
    queue_sizes: Vec<u16>,
    server: Arc<Server>,
    /// Readable while threads shall end.
    stop_event: Arc<EventFd>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<VirtQueue>>>,
    slow_lane: Option<SlowLane>,
}

impl FsDevice {
    /// A device that the guest mounts by `tag` and that shows it `shares`; restored, where there is a `state`, with
    /// the inodes and files open that the guest knows. All shares of the state must have been added.
    ///
    /// Raises the process's limit of open descriptors as far as it may.
    ///
    /// # Errors
    /// The tag is empty or longer than 36 bytes, a system call fails, or an open file of `state` is not to be found.
    pub fn new(tag: &str, shares: SharesHandle, state: Option<FsState>) -> Result<Self, FsError> {
        let server = Server::new(shares, limits()?)?;
        if let Some(state) = state {
            server.restore(&state)?;
        }
        let stop_event = EventFd::new(EFD_NONBLOCK).map_err(|error| FsError::System("make an eventfd", error))?;
        let mut device = Self {
            config: config(tag)?,
            queue_sizes: Vec::new(),
            server: Arc::new(server),
            stop_event: Arc::new(stop_event),
            stopping: Arc::default(),
            threads: Vec::new(),
            slow_lane: None,
        };
        device.set_request_queues(1);
        Ok(device)
    }

    /// The device with `count` request queues, each served by a thread of its own: as many as vCPUs are good.
    #[must_use]
    pub fn with_request_queues(mut self, count: u16) -> Self {
        self.set_request_queues(count);
        self
    }

    fn set_request_queues(&mut self, count: u16) {
        let count = count.max(1);
        self.config[TAG_LENGTH..].copy_from_slice(&u32::from(count).to_le_bytes());
        self.queue_sizes = vec![QUEUE_SIZE; usize::from(count) + 1];
    }

    fn start_threads(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let memory = Arc::new(memory);
        let slow_lane = self.slow_lane.insert(SlowLane::start(&self.server, &memory)?);
        let mut queues = queues.into_iter();
        // The first thread serves the queue for FORGET too, which is rarely busy.
        let mut group: Vec<VirtQueue> = queues.by_ref().take(2).collect();
        while !group.is_empty() {
            let thread = QueueThread {
                server: Arc::clone(&self.server),
                memory: Arc::clone(&memory),
                interrupt: interrupt.clone(),
                queues: group,
                broken: Vec::new(),
                stopping: Arc::clone(&self.stopping),
                stop_event: Arc::clone(&self.stop_event),
                slow_lane: slow_lane.entrance()?,
            };
            self.threads.push(thread.spawn(format!("fs{}", self.threads.len()))?);
            group = queues.next().into_iter().collect();
        }
        Ok(())
    }
}

impl VirtioDevice for FsDevice {
    type State = FsState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_INDIRECT_DESC) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Vec<u8> {
        self.config.into()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.stopping.store(false, Ordering::Release);
        let result = self.start_threads(activation);
        if result.is_err() {
            self.quiesce();
        }
        result
    }

    fn quiesce(&mut self) -> Vec<VirtQueue> {
        if self.slow_lane.is_none() {
            return Vec::new();
        }
        self.stopping.store(true, Ordering::Release);
        if let Err(error) = self.stop_event.write(1) {
            tracing::error!("cannot wake the file server's threads: {error}");
        }
        let queues = self.threads.drain(..).flat_map(|thread| match thread.join() {
            Ok(queues) => queues,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        let queues = queues.collect();
        // Now that no queue thread can send it anything.
        self.slow_lane = None;
        if let Err(error) = self.stop_event.read() {
            tracing::error!("cannot rearm the file server's threads: {error}");
        }
        queues
    }

    fn save(&self) -> FsState {
        self.server.save()
    }
}

impl Drop for FsDevice {
    fn drop(&mut self) {
        self.quiesce();
    }
}

fn config(tag: &str) -> Result<[u8; TAG_LENGTH + 4], FsError> {
    if tag.is_empty() || tag.len() > TAG_LENGTH {
        return Err(FsError::Tag(tag.to_owned()));
    }
    let mut config = [0; TAG_LENGTH + 4];
    config[..tag.len()].copy_from_slice(tag.as_bytes());
    Ok(config)
}

/// Raises the limit of open descriptors as far as it goes, and shares it out: an eighth is left to the rest of the
/// process.
fn limits() -> Result<Limits, FsError> {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    let possible = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let wanted = [possible, maximum].into_iter().flatten().max();
    let raise = |limit| rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit });
    let limit = match wanted {
        Some(wanted) if raise(Some(wanted)).is_ok() => Some(wanted),
        // Only the privileged raise the hard limit.
        _ if raise(maximum).is_ok() => maximum,
        _ => current,
    };
    let limit = usize::try_from(limit.unwrap_or(1 << 20)).map_err(|_| FsError::Descriptors)?;
    Ok(Limits { inodes: limit / 4 * 3, handles: limit / 8 })
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;
    use crate::fs::ShareOptions;
    use crate::fs::wire::{
        EntryOut, FsyncIn, IN_HEADER, InHeader, InitIn, MAJOR, MINOR, OpenOut, OutHeader, ROOT_ID, op,
    };
    use crate::virtio::testing::{Driver, life_cycle};

    fn header(opcode: u32, nodeid: u64, body: usize) -> InHeader {
        let len = u32::try_from(IN_HEADER + body).unwrap();
        InHeader { len, opcode, nodeid, unique: 7, ..InHeader::default() }
    }

    fn call(driver: &mut Driver<FsDevice>, opcode: u32, nodeid: u64, body: &[u8]) -> (OutHeader, Vec<u8>) {
        let reply = driver.request(1, &[header(opcode, nodeid, body.len()).as_bytes(), body], &[16, 4096]);
        let (out, body) = OutHeader::read_from_prefix(&reply).unwrap();
        assert_eq!(usize::try_from(out.len).unwrap(), reply.len());
        (out, body.to_vec())
    }

    fn init(driver: &mut Driver<FsDevice>) {
        let args = InitIn { major: MAJOR, minor: MINOR, max_readahead: 0, flags: 0 };
        assert_eq!(call(driver, op::INIT, 0, args.as_bytes()).0.error, 0);
    }

    fn shares() -> (tempfile::TempDir, SharesHandle) {
        let directory = tempfile::tempdir().unwrap();
        let shares = SharesHandle::new();
        shares.add("c/share", std::fs::File::open(directory.path()).unwrap().into(), ShareOptions::default()).unwrap();
        (directory, shares)
    }

    #[test]
    fn it_serves_through_its_whole_life() {
        let (_directory, shares) = shares();
        let make = |state| FsDevice::new("vmrt", shares.clone(), state).unwrap();
        let mut inode = None;
        let mut lives = 0;
        life_cycle(make, |driver| {
            lives += 1;
            // Restored, the session goes on; after a reset the driver begins anew.
            if lives != 2 {
                init(driver);
                inode = None;
            }
            let container = call(driver, op::LOOKUP, ROOT_ID, b"c\0").1;
            let container = EntryOut::read_from_prefix(&container).unwrap().0.nodeid;
            let (out, share) = call(driver, op::LOOKUP, container, b"share\0");
            assert_eq!(out.error, 0);
            let share = EntryOut::read_from_prefix(&share).unwrap().0.nodeid;
            assert_eq!(*inode.get_or_insert(share), share, "known by the same node id");
            let (_, open) = call(driver, op::OPENDIR, share, &[0; 8]);
            let fh = OpenOut::read_from_prefix(&open).unwrap().0.fh;
            // By way of the slow lane.
            let sync = FsyncIn { fh, ..FsyncIn::default() };
            assert_eq!(call(driver, op::FSYNCDIR, share, sync.as_bytes()).0.error, 0);
        });
        assert_eq!(lives, 3);
    }

    #[test]
    fn requests_before_init_are_refused_and_forgets_not_answered() {
        let (_directory, shares) = shares();
        let mut driver = Driver::new(FsDevice::new("vmrt", shares, None).unwrap());
        driver.set_up();
        assert_eq!(call(&mut driver, op::LOOKUP, ROOT_ID, b"c\0").0.error, -libc::EIO);
        assert!(driver.request(0, &[header(op::FORGET, 9, 8).as_bytes(), &[0; 8]], &[]).is_empty());
        assert!(driver.request(1, &[b"short"], &[4096]).is_empty());
        assert!(driver.request(1, &[header(op::LOOKUP, ROOT_ID, 2).as_bytes(), b"c\0"], &[15]).is_empty());
    }

    #[test]
    fn slow_requests_under_way_are_finished_before_the_device_rests() {
        let (directory, shares) = shares();
        let mut driver = Driver::new(FsDevice::new("vmrt", shares, None).unwrap());
        driver.set_up();
        init(&mut driver);
        let container = call(&mut driver, op::LOOKUP, ROOT_ID, b"c\0").1;
        let container = EntryOut::read_from_prefix(&container).unwrap().0.nodeid;
        let share = call(&mut driver, op::LOOKUP, container, b"share\0").1;
        let share = EntryOut::read_from_prefix(&share).unwrap().0.nodeid;
        let open = call(&mut driver, op::OPENDIR, share, &[0; 8]).1;
        let sync = FsyncIn { fh: OpenOut::read_from_prefix(&open).unwrap().0.fh, ..FsyncIn::default() };
        let header = header(op::FSYNCDIR, share, size_of::<FsyncIn>());
        let heads: Vec<u16> = (0..50).map(|_| driver.offer(1, &[header.as_bytes(), sync.as_bytes()], &[16])).collect();
        driver.notify(1);
        let mut seen: Vec<u16> = heads.iter().map(|_| driver.wait_used(1).head).collect();
        seen.sort_unstable();
        assert_eq!(seen, heads, "each once");
        for _ in 0..50 {
            driver.offer(1, &[header.as_bytes(), sync.as_bytes()], &[16]);
        }
        driver.notify(1);
        driver.reset();
        drop(directory);
        driver.set_up();
        init(&mut driver);
    }

    #[test]
    fn configuration_space() {
        let (_directory, shares) = shares();
        let device = FsDevice::new("vmrt", shares.clone(), None).unwrap().with_request_queues(3);
        let config = device.config();
        assert_eq!(&config[..6], b"vmrt\0\0");
        assert_eq!(config[36..], [3, 0, 0, 0]);
        assert_eq!(device.queue_sizes(), [1024; 4]);
        for tag in ["", &"x".repeat(37)] {
            assert!(matches!(FsDevice::new(tag, shares.clone(), None), Err(FsError::Tag(_))));
        }
    }
}
