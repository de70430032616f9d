//! A thread that serves virtqueues.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::blocking_pool::{Completion, Submitter};
use super::chain::buffers;
use super::worker_thread::spawn;
use crate::arch::Memory;
use crate::fs::error::FsError;
use crate::fs::server::Server;
use crate::fs::worker::Worker;
use crate::virtio::device::{ActivateError, Interrupt, VirtQueue};

/// What a thread gets with each activation of the device.
pub(super) struct QueueWork {
    pub(super) memory: Arc<Memory>,
    pub(super) interrupt: Interrupt,
    pub(super) queues: Vec<VirtQueue>,
}

/// How a thread is told to return its queues. All threads share it.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) is_set: Arc<AtomicBool>,
    /// Readable while `is_set`.
    pub(super) event: Arc<EventFd>,
}

/// A thread that lives as long as the device, and owns queues while the device is active.
#[derive(Debug)]
pub(super) struct QueueThread {
    /// `None` only while the thread is joined.
    work: Option<Sender<QueueWork>>,
    queues: Receiver<Vec<VirtQueue>>,
    is_active: bool,
    thread: Option<JoinHandle<()>>,
}

impl QueueThread {
    /// Starts the thread, without queues.
    pub(super) fn start(
        name: String,
        server: &Arc<Server>,
        stop: Stop,
        mut blocking_pool: Submitter,
    ) -> Result<Self, FsError> {
        let (work, receiver) = channel();
        let (sender, queues) = channel();
        let thread_server = Arc::clone(server);
        let thread = spawn(name, server, move |mut worker| {
            for work in receiver {
                let active = ActiveQueues::new(&thread_server, work, &stop, &mut blocking_pool);
                if sender.send(active.serve(&mut worker)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { work: Some(work), queues, is_active: false, thread: Some(thread) })
    }

    /// Gives the thread queues to serve.
    ///
    /// # Errors
    /// The thread has ended.
    pub(super) fn activate(&mut self, work: QueueWork) -> Result<(), ActivateError> {
        self.is_active = self.work.as_ref().is_some_and(|sender| sender.send(work).is_ok());
        let ended = || ActivateError::System("reach a file server thread", std::io::ErrorKind::BrokenPipe.into());
        self.is_active.then_some(()).ok_or_else(ended)
    }

    /// Waits for the queues, after the stop was set. A thread that has ended or was not activated has none.
    pub(super) fn take_queues(&mut self) -> Vec<VirtQueue> {
        if !std::mem::take(&mut self.is_active) {
            return Vec::new();
        }
        self.queues.recv().unwrap_or_default()
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        drop(self.work.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a file server thread panicked");
        }
    }
}

/// The queues of a thread while the device is active, and what the thread needs to serve them.
struct ActiveQueues<'t> {
    server: &'t Server,
    memory: Arc<Memory>,
    interrupt: Interrupt,
    queues: Vec<VirtQueue>,
    /// Indices of queues on which the driver violated the specification. They are not served until reset.
    broken: Vec<usize>,
    stop: &'t Stop,
    blocking_pool: &'t mut Submitter,
}

impl<'t> ActiveQueues<'t> {
    fn new(server: &'t Server, work: QueueWork, stop: &'t Stop, blocking_pool: &'t mut Submitter) -> Self {
        let QueueWork { memory, interrupt, queues } = work;
        Self { server, memory, interrupt, queues, broken: Vec::new(), stop, blocking_pool }
    }

    /// Serves the queues until the device stops. Then finishes the requests that were taken, and returns the queues.
    fn serve(mut self, worker: &mut Worker) -> Vec<VirtQueue> {
        // Chains that were added before this activation have no notification pending.
        let mut ready: Vec<usize> = (0..self.queues.len()).collect();
        while !self.is_stopped() {
            for index in ready {
                let result = self.serve_queue(worker, index);
                self.mark_broken(index, result);
            }
            ready = self.wait();
        }
        for completion in self.blocking_pool.wait_all() {
            self.complete(&completion);
        }
        self.queues
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_set.load(Ordering::Acquire)
    }

    /// Waits for queue notifications, completed requests or the end. Returns the queues to be served.
    fn wait(&mut self) -> Vec<usize> {
        let entry = |event: &EventFd| libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut fds = vec![entry(&self.stop.event), entry(self.blocking_pool.completion_event())];
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
        let mut served_before = true;
        loop {
            self.queues[index].queue.disable_notification(&*self.memory)?;
            let mut served = false;
            while !self.is_stopped() {
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
                    None => self.submit(index, chain),
                }
            }
            let more = self.queues[index].queue.enable_notification(&*self.memory)?;
            if !more || self.is_stopped() {
                return Ok(());
            }
            // The driver may have added a chain just before notifications were enabled. Then the second look finds it.
            if !served && !served_before {
                return Err(virtio_queue::Error::InvalidAvailRingIndex);
            }
            served_before = served;
        }
    }

    /// Has the pool serve a chain. Waits first if the pool has too many of this thread.
    fn submit(&mut self, index: usize, chain: DescriptorChain<Arc<Memory>>) {
        while self.blocking_pool.is_full() {
            for completion in self.blocking_pool.wait_completions() {
                self.complete(&completion);
            }
        }
        self.blocking_pool.submit(index, chain, &self.memory);
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
