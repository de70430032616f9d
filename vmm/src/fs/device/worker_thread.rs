//! Worker threads of the file server.

use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use crate::fs::error::FsError;
use crate::fs::server::Server;
use crate::fs::worker::Worker;
use crate::virtio::device::ActivateError;

/// Size of a thread's stack in bytes. Requests are small, and nothing recurses.
const STACK: usize = 256 << 10;

/// Starts a thread, makes it a [`Worker`] and calls `run` on it. Waits until the thread is a worker.
///
/// # Errors
/// The thread cannot be started, or cannot become a worker.
pub(super) fn spawn<T: Default + Send + 'static>(
    name: String,
    server: &Server,
    run: impl FnOnce(Worker) -> T + Send + 'static,
) -> Result<JoinHandle<T>, ActivateError> {
    let proc_fds = server.proc_fds().clone();
    let (ready, adopted) = channel();
    let body = move || match Worker::for_current_thread(&proc_fds) {
        Ok(worker) => {
            // The receiver exists until it has received this message.
            let _ = ready.send(Ok(()));
            run(worker)
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            T::default()
        }
    };
    let thread = std::thread::Builder::new().name(name).stack_size(STACK).spawn(body);
    let thread = thread.map_err(|error| ActivateError::System("start a file server thread", error))?;
    match adopted.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(FsError::System(step, error))) => Err(ActivateError::System(step, error)),
        Ok(Err(error)) => Err(ActivateError::System("start a file server thread", std::io::Error::other(error))),
        Err(_) => Err(ActivateError::System("start a file server thread", std::io::ErrorKind::BrokenPipe.into())),
    }
}
