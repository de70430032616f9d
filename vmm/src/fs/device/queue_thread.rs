//! A thread that serves virtqueues.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use virtio_queue::{QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::blocking_pool::{Completion, Submitter};
use super::chain::buffers;
use super::worker_thread::spawn;
use crate::arch::Memory;
use crate::fs::server::Server;
use crate::fs::worker::Worker;
use crate::virtio::device::{ActivateError, Interrupt, VirtQueue};

/// The queues of one thread, and what it needs to serve them.
pub(super) struct QueueThread {
    pub(super) server: Arc<Server>,
    pub(super) memory: Arc<Memory>,
    pub(super) interrupt: Interrupt,
    pub(super) queues: Vec<VirtQueue>,
    /// Indices of queues on which the driver violated the specification. They are not served until reset.
    pub(super) broken: Vec<usize>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) stop_event: Arc<EventFd>,
    pub(super) blocking_pool: Submitter,
}

impl QueueThread {
    /// Starts the thread. When the device stops, it finishes the requests that it has taken, and returns its queues.
    pub(super) fn spawn(mut self, name: String) -> Result<JoinHandle<Vec<VirtQueue>>, ActivateError> {
        let server = Arc::clone(&self.server);
        spawn(name, &server, move |mut worker| {
            self.serve(&mut worker);
            self.queues
        })
    }

    fn serve(&mut self, worker: &mut Worker) {
        // Chains that were added before this activation have no notification pending.
        let mut ready: Vec<usize> = (0..self.queues.len()).collect();
        while !self.stopping.load(Ordering::Acquire) {
            for index in ready {
                let result = self.serve_queue(worker, index);
                self.mark_broken(index, result);
            }
            ready = self.wait();
        }
        for completion in self.blocking_pool.wait_all() {
            self.complete(&completion);
        }
    }

    /// Waits for queue notifications, completed requests or the end. Returns the queues to be served.
    fn wait(&mut self) -> Vec<usize> {
        let entry = |event: &EventFd| libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut fds = vec![entry(&self.stop_event), entry(self.blocking_pool.completion_event())];
        let first = fds.len();
        fds.extend(self.queues.iter().map(|queue| entry(&queue.notify)));
        // SAFETY: pointer and length are those of a live vector, and the descriptors are open while `self` is borrowed.
        let count = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
        if count < 0 {
            tracing::debug!("poll: {}", std::io::Error::last_os_error());
            return Vec::new();
        }
        if fds[1].revents != 0 {
            for completion in self.blocking_pool.wait_completions() {
                self.complete(&completion);
            }
        }
        let ready: Vec<usize> = (0..self.queues.len()).filter(|index| fds[index + first].revents != 0).collect();
        ready.iter().for_each(|index| self.queues[*index].clear_notification());
        ready
    }

    /// Serves all available chains of a queue.
    fn serve_queue(&mut self, worker: &mut Worker, index: usize) -> Result<(), virtio_queue::Error> {
        if !self.queues[index].queue.ready() || self.broken.contains(&index) {
            return Ok(());
        }
        loop {
            self.queues[index].queue.disable_notification(&*self.memory)?;
            let mut served = false;
            while !self.stopping.load(Ordering::Acquire) {
                let memory = Arc::clone(&self.memory);
                let Some(chain) = self.queues[index].queue.iter(memory)?.next() else { break };
                served = true;
                let head = chain.head_index();
                let length = match buffers(chain.clone(), &self.memory) {
                    Some((request, reply)) => self.server.handle_nonblocking(worker, request, reply),
                    None => Some(0),
                };
                match length {
                    Some(length) => self.add_used(index, head, length)?,
                    None => self.blocking_pool.submit(index, chain),
                }
            }
            let more = self.queues[index].queue.enable_notification(&*self.memory)?;
            if !more || self.stopping.load(Ordering::Acquire) {
                return Ok(());
            }
            if !served {
                return Err(virtio_queue::Error::InvalidAvailRingIndex);
            }
        }
    }

    fn complete(&mut self, completion: &Completion) {
        let result = self.add_used(completion.queue, completion.head, completion.length);
        self.mark_broken(completion.queue, result);
    }

    /// Adds a chain to the used ring, with a reply of `length` bytes.
    fn add_used(&mut self, index: usize, head: u16, length: usize) -> Result<(), virtio_queue::Error> {
        let queue = &mut self.queues[index].queue;
        queue.add_used(&*self.memory, head, u32::try_from(length).unwrap_or(u32::MAX))?;
        if queue.needs_notification(&*self.memory)?
            && let Err(error) = self.interrupt.notify_used_buffers()
        {
            tracing::error!("cannot interrupt the guest for virtio-fs: {error}");
        }
        Ok(())
    }

    fn mark_broken(&mut self, index: usize, result: Result<(), virtio_queue::Error>) {
        if let Err(error) = result
            && !self.broken.contains(&index)
        {
            tracing::warn!(%error, "the driver broke virtqueue {index} of virtio-fs; it is not served until reset");
            self.broken.push(index);
        }
    }
}
