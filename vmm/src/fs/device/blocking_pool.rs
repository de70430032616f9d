//! A pool of threads for requests that wait for a disk, so that the queue threads can serve other requests meanwhile.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use virtio_queue::DescriptorChain;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::chain::buffers;
use super::worker_thread::spawn;
use crate::arch::Memory;
use crate::fs::error::FsError;
use crate::fs::server::Server;
use crate::fs::worker::Worker;

/// The number of threads, and so of requests that can wait at the same time.
const THREADS: usize = 4;

/// Most requests of one queue thread that wait or are served. A driver that follows the specification has no more, because a queue
/// has no more descriptors. It bounds the memory of one that uses its descriptors again before they are used.
const MAX_OUTSTANDING: usize = super::QUEUE_SIZE as usize;

/// A descriptor chain to be served, and where its completion is reported.
struct Job {
    queue: usize,
    chain: DescriptorChain<Arc<Memory>>,
    memory: Arc<Memory>,
    completions: Arc<Completions>,
}

/// A completed request.
pub(super) struct Completion {
    /// Queue index.
    pub(super) queue: usize,
    /// Head of the descriptor chain.
    pub(super) head: u16,
    /// Length of the reply in bytes.
    pub(super) length: usize,
}

/// The completed requests of one queue thread.
struct Completions {
    list: Mutex<Vec<Completion>>,
    event: EventFd,
}

/// The pool. Dropping it waits for the current requests and ends the threads.
#[derive(Debug)]
pub(super) struct BlockingPool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl BlockingPool {
    /// Starts the threads.
    pub(super) fn start(server: &Arc<Server>) -> Result<Self, FsError> {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut pool = Self { jobs: Some(sender), threads: Vec::new() };
        for number in 0..THREADS {
            let (receiver, thread_server) = (Arc::clone(&receiver), Arc::clone(server));
            let run = move |mut worker: Worker| serve(&thread_server, &receiver, &mut worker);
            pool.threads.push(spawn(format!("fs-blocking{number}"), server, run)?);
        }
        Ok(pool)
    }

    /// A submitter for one queue thread.
    pub(super) fn submitter(&self) -> Result<Submitter, FsError> {
        let event = EventFd::new(EFD_CLOEXEC).map_err(|error| FsError::System("make an eventfd", error))?;
        let completions = Arc::new(Completions { list: Mutex::default(), event });
        Ok(Submitter { jobs: self.jobs.clone(), completions, outstanding: 0 })
    }
}

impl Drop for BlockingPool {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a file server thread panicked");
            }
        }
    }
}

fn serve(server: &Server, jobs: &Mutex<Receiver<Job>>, worker: &mut Worker) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { queue, chain, memory, completions }) = job else { return };
        #[cfg(feature = "takeover")]
        crate::jail::takeover::reach(crate::jail::takeover::Point::BlockingRequest);
        let head = chain.head_index();
        let length = match buffers(chain, &memory) {
            Some((request, reply)) => server.handle(worker, request, reply),
            None => 0,
        };
        completions.list.lock().unwrap_or_else(PoisonError::into_inner).push(Completion { queue, head, length });
        if let Err(error) = completions.event.write(1) {
            tracing::error!("cannot report the completion of a request: {error}");
        }
    }
}

/// Submits the requests of one queue thread to the pool.
pub(super) struct Submitter {
    /// `None` after the pool was dropped.
    jobs: Option<Sender<Job>>,
    completions: Arc<Completions>,
    outstanding: usize,
}

impl Submitter {
    /// Submits a chain of queue number `queue`.
    pub(super) fn submit(&mut self, queue: usize, chain: DescriptorChain<Arc<Memory>>, memory: &Arc<Memory>) {
        let job = Job { queue, chain, memory: Arc::clone(memory), completions: Arc::clone(&self.completions) };
        if self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok()) {
            self.outstanding += 1;
        } else {
            tracing::error!("the file server's threads for blocking requests have ended");
        }
    }

    /// Whether no further chain may be submitted before a request is completed.
    pub(super) fn is_full(&self) -> bool {
        self.outstanding >= MAX_OUTSTANDING
    }

    /// Readable after a request was completed.
    pub(super) fn completion_event(&self) -> &EventFd {
        &self.completions.event
    }

    /// Takes the completed requests. Waits for one if there is none.
    pub(super) fn wait_completions(&mut self) -> Vec<Completion> {
        if let Err(error) = self.completions.event.read() {
            tracing::error!("cannot wait for the completion of a request: {error}");
        }
        let list = std::mem::take(&mut *self.completions.list.lock().unwrap_or_else(PoisonError::into_inner));
        self.outstanding -= list.len();
        list
    }

    /// Waits for all submitted requests.
    pub(super) fn wait_all(&mut self) -> Vec<Completion> {
        let mut all = Vec::new();
        while self.outstanding > 0 {
            all.extend(self.wait_completions());
        }
        all
    }
}
