//! Worker threads of the file server.

use std::io;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use crate::fs::error::FsError;
use crate::fs::server::Server;
use crate::fs::worker::Worker;

/// Size of a thread's stack in bytes. Requests are small, and nothing recurses.
const STACK: usize = 256 << 10;

/// Starts a thread, makes it a [`Worker`] and calls `run` on it. Waits until the thread is a worker.
///
/// # Errors
/// The thread cannot be started, or cannot become a worker.
pub(super) fn spawn(
    name: String,
    server: &Server,
    run: impl FnOnce(Worker) + Send + 'static,
) -> Result<JoinHandle<()>, FsError> {
    let proc_fds = server.proc_fds().clone();
    let (ready, adopted) = channel();
    let body = move || match Worker::for_current_thread(&proc_fds) {
        Ok(worker) => {
            // The receiver exists until it has received this message.
            let _ = ready.send(Ok(()));
            run(worker);
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    };
    let failed = |error| FsError::System("start a file server thread", error);
    let thread = std::thread::Builder::new().name(name).stack_size(STACK).spawn(body).map_err(failed)?;
    adopted.recv().map_err(|_| failed(io::ErrorKind::BrokenPipe.into()))??;
    Ok(thread)
}
