//! The virtio-fs device: its virtqueues, and the threads that serve them.

mod blocking_pool;
pub(super) mod chain;
mod queue_thread;
mod worker_thread;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::blocking_pool::BlockingPool;
use self::queue_thread::{QueueThread, QueueWork, Stop};
use crate::fs::error::FsError;
use crate::fs::server::Server;
use crate::fs::server::state::FsState;
use crate::virtio::device::{ActivateError, Activation, VirtQueue, VirtioDevice};

/// Length of the tag in the device configuration space in bytes (virtio 1.2, 5.11.4).
const TAG_LENGTH: usize = 36;
/// Largest size of each queue. A request of 1 MiB takes about 260 descriptors if the driver uses no indirect ones.
const QUEUE_SIZE: u16 = 1024;

/// The virtio-fs device (virtio 1.2, 5.11): a high priority queue for `FORGET`, and one or more request queues.
///
/// Its threads live as long as the device. They get their queues at each activation, so that they exist before the process confines
/// the threads that activate the device.
#[derive(Debug)]
pub struct FsDevice {
    config: [u8; TAG_LENGTH + 4],
    queue_sizes: Vec<u16>,
    server: Arc<Server>,
    stop: Stop,
    // The queue threads end before the pool, which serves their requests.
    threads: Vec<QueueThread>,
    _blocking_pool: BlockingPool,
    is_active: bool,
}

impl FsDevice {
    /// A device that the guest mounts by `tag`, with `request_queues` request queues, each with its own thread. A good number is
    /// that of the vCPUs. With a `state`, the device has the inodes and open files that the guest knows; all shares of the state
    /// must have been added.
    ///
    /// # Errors
    /// The tag is empty or longer than 36 bytes, a thread cannot be started, or an open file of `state` is not found.
    pub fn new(tag: &str, server: Server, request_queues: u16, state: Option<FsState>) -> Result<Self, FsError> {
        if let Some(state) = state {
            server.restore(&state)?;
        }
        let (server, request_queues) = (Arc::new(server), request_queues.max(1));
        let config = config(tag, request_queues)?;
        let event = EventFd::new(EFD_NONBLOCK).map_err(|error| FsError::System("make an eventfd", error))?;
        let stop = Stop { is_set: Arc::default(), event: Arc::new(event) };
        let blocking_pool = BlockingPool::start(&server)?;
        let start =
            |number| QueueThread::start(format!("fs{number}"), &server, stop.clone(), blocking_pool.submitter()?);
        let threads = (0..request_queues).map(start).collect::<Result<_, FsError>>()?;
        let queue_sizes = vec![QUEUE_SIZE; usize::from(request_queues) + 1];
        Ok(Self { config, queue_sizes, server, stop, threads, _blocking_pool: blocking_pool, is_active: false })
    }

    /// Gives each thread its queues. The first one also serves the high priority queue, which is rarely busy.
    fn give_queues(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let memory = Arc::new(memory);
        let mut queues = queues.into_iter();
        for (index, thread) in self.threads.iter_mut().enumerate() {
            let count = if index == 0 { 2 } else { 1 };
            let queues = queues.by_ref().take(count).collect();
            thread.activate(QueueWork { memory: Arc::clone(&memory), interrupt: interrupt.clone(), queues })?;
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
        self.is_active = true;
        let result = self.give_queues(activation);
        if result.is_err() {
            self.deactivate();
        }
        result
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        if !std::mem::take(&mut self.is_active) {
            return Vec::new();
        }
        self.stop.is_set.store(true, Ordering::Release);
        if let Err(error) = self.stop.event.write(1) {
            tracing::error!("cannot wake the file server's threads: {error}");
        }
        let queues = self.threads.iter_mut().flat_map(QueueThread::take_queues).collect();
        if let Err(error) = self.stop.event.read() {
            tracing::error!("cannot reset the file server's stop event: {error}");
        }
        self.stop.is_set.store(false, Ordering::Release);
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

fn config(tag: &str, request_queues: u16) -> Result<[u8; TAG_LENGTH + 4], FsError> {
    if tag.is_empty() || tag.len() > TAG_LENGTH {
        return Err(FsError::Tag(tag.to_owned()));
    }
    let mut config = [0; TAG_LENGTH + 4];
    config[..tag.len()].copy_from_slice(tag.as_bytes());
    config[TAG_LENGTH..].copy_from_slice(&u32::from(request_queues).to_le_bytes());
    Ok(config)
}

#[cfg(test)]
mod tests;
