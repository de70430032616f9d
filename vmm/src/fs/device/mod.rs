//! The virtio-fs device: its virtqueues, and the threads that serve them.

mod blocking_pool;
pub(super) mod chain;
mod queue_thread;
mod worker_thread;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::process::{Resource, Rlimit};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::blocking_pool::BlockingPool;
use self::queue_thread::QueueThread;
use crate::fs::error::FsError;
use crate::fs::server::state::FsState;
use crate::fs::server::{Limits, Server};
use crate::fs::tables::shares::SharesHandle;
use crate::virtio::device::{ActivateError, Activation, VirtQueue, VirtioDevice};

/// Length of the tag in the device configuration space in bytes (virtio 1.2, 5.11.4).
const TAG_LENGTH: usize = 36;
/// Largest size of each queue. A request of 1 MiB takes about 260 descriptors if the driver uses no indirect ones.
const QUEUE_SIZE: u16 = 1024;

/// The virtio-fs device (virtio 1.2, 5.11): a high priority queue for `FORGET`, and one or more request queues.
#[derive(Debug)]
pub struct FsDevice {
    config: [u8; TAG_LENGTH + 4],
    queue_sizes: Vec<u16>,
    server: Arc<Server>,
    /// Readable while the threads are to end.
    stop_event: Arc<EventFd>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<VirtQueue>>>,
    blocking_pool: Option<BlockingPool>,
}

impl FsDevice {
    /// A device that the guest mounts by `tag` and that serves `shares`. With a `state`, the device has the inodes and
    /// open files that the guest knows; all shares of the state must have been added.
    ///
    /// Raises the process's limit of open file descriptors as far as it may.
    ///
    /// # Errors
    /// The tag is empty or longer than 36 bytes, a system call fails, or an open file of `state` is not found.
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
            blocking_pool: None,
        };
        device.set_request_queues(1);
        Ok(device)
    }

    /// Gives the device `count` request queues, each with its own thread. A good count is the number of vCPUs.
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
        let blocking_pool = self.blocking_pool.insert(BlockingPool::start(&self.server, &memory)?);
        let mut queues = queues.into_iter();
        // The first thread also serves the high priority queue, which is rarely busy.
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
                blocking_pool: blocking_pool.submitter()?,
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
            self.deactivate();
        }
        result
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        if self.blocking_pool.is_none() {
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
        // No queue thread can submit requests any longer.
        self.blocking_pool = None;
        if let Err(error) = self.stop_event.read() {
            tracing::error!("cannot reset the file server's stop event: {error}");
        }
        queues
    }

    fn save(&self) -> FsState {
        self.server.save()
    }
}

impl Drop for FsDevice {
    fn drop(&mut self) {
        self.deactivate();
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

/// Raises the limit of open file descriptors as far as possible, and divides it between inodes and file handles. An
/// eighth is left to the rest of the process.
fn limits() -> Result<Limits, FsError> {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    let possible = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let wanted = [possible, maximum].into_iter().flatten().max();
    let raise = |limit| rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit });
    let limit = match wanted {
        Some(wanted) if raise(Some(wanted)).is_ok() => Some(wanted),
        // Only a privileged process can raise the hard limit.
        _ if raise(maximum).is_ok() => maximum,
        _ => current,
    };
    let limit = usize::try_from(limit.unwrap_or(1 << 20)).map_err(|_| FsError::FdLimit)?;
    Ok(Limits { inodes: limit / 4 * 3, handles: limit / 8 })
}

#[cfg(test)]
mod tests;
