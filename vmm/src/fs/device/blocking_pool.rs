//! Requests that wait for a disk, served on threads of their own so that others overtake them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use virtio_queue::DescriptorChain;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::chain::buffers;
use super::worker_thread::spawn;
use crate::fs::server::Server;
use crate::fs::worker::Worker;
use crate::virtio::device::{ActivateError, Memory};

/// How many slow requests are served at once.
const THREADS: usize = 4;

/// A chain to serve, and who wants to hear of its end.
struct Job {
    queue: usize,
    chain: DescriptorChain<Arc<Memory>>,
    finished: Arc<Completions>,
}

/// What of a queue thread's slow requests is done.
struct Completions {
    /// Queue, head and reply length of each.
    chains: Mutex<Vec<(usize, u16, usize)>>,
    event: EventFd,
}

/// The threads. They end when it is dropped, which waits for what they are at.
#[derive(Debug)]
pub(super) struct BlockingPool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl BlockingPool {
    /// Starts the threads.
    pub(super) fn start(server: &Arc<Server>, memory: &Arc<Memory>) -> Result<Self, ActivateError> {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut pool = Self { jobs: Some(sender), threads: Vec::new() };
        for number in 0..THREADS {
            let (receiver, memory) = (Arc::clone(&receiver), Arc::clone(memory));
            let thread_server = Arc::clone(server);
            let run = move |mut worker: Worker| serve(&thread_server, &memory, &receiver, &mut worker);
            pool.threads.push(spawn(format!("fs-slow{number}"), server, run)?);
        }
        Ok(pool)
    }

    /// A way in for one queue thread.
    pub(super) fn submitter(&self) -> Result<Submitter, ActivateError> {
        let event = EventFd::new(EFD_CLOEXEC).map_err(|error| ActivateError::System("make an eventfd", error))?;
        let finished = Arc::new(Completions { chains: Mutex::default(), event });
        Ok(Submitter { jobs: self.jobs.clone(), finished, outstanding: 0 })
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

fn serve(server: &Server, memory: &Memory, jobs: &Mutex<Receiver<Job>>, worker: &mut Worker) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { queue, chain, finished }) = job else { return };
        let head = chain.head_index();
        let length = match buffers(chain, memory) {
            Some((request, reply)) => server.handle(worker, request, reply),
            None => 0,
        };
        finished.chains.lock().unwrap_or_else(PoisonError::into_inner).push((queue, head, length));
        if let Err(error) = finished.event.write(1) {
            tracing::error!("cannot tell the end of a request: {error}");
        }
    }
}

/// A queue thread's way into the slow lane.
pub(super) struct Submitter {
    /// There as long as the lane is.
    jobs: Option<Sender<Job>>,
    finished: Arc<Completions>,
    outstanding: usize,
}

impl Submitter {
    /// Has a chain of queue number `queue` served.
    pub(super) fn submit(&mut self, queue: usize, chain: DescriptorChain<Arc<Memory>>) {
        let job = Job { queue, chain, finished: Arc::clone(&self.finished) };
        if self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok()) {
            self.outstanding += 1;
        } else {
            tracing::error!("the file server's threads for slow requests are gone");
        }
    }

    /// Readable when a request is done.
    pub(super) fn completion_event(&self) -> &EventFd {
        &self.finished.event
    }

    /// Queue, head and reply length of the requests that are done. Waits for one where none is.
    pub(super) fn wait_completions(&mut self) -> Vec<(usize, u16, usize)> {
        if let Err(error) = self.finished.event.read() {
            tracing::error!("cannot hear of the end of a request: {error}");
        }
        let chains = std::mem::take(&mut *self.finished.chains.lock().unwrap_or_else(PoisonError::into_inner));
        self.outstanding -= chains.len();
        chains
    }

    /// Waits for every request under way.
    pub(super) fn wait_all(&mut self) -> Vec<(usize, u16, usize)> {
        let mut all = Vec::new();
        while self.outstanding > 0 {
            all.extend(self.wait_completions());
        }
        all
    }
}
