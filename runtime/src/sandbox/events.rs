//! The resource usage and the out-of-memory events of a container.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent::{ContainerRequest, FailureKind, ProcessId};
use thiserror::Error;
use vmm::control::{Answer, Client, ClientError, Reply, Request};

use super::connection::{Connection, Event, RequestError};
use super::control_socket::control;
use super::record::Phase;
use super::status::status;
use super::store::{StateError, Store};
use crate::base::container_id::ContainerId;

/// Time limit for a guest to report the resource usage of a container.
const STATS_TIMEOUT: Duration = Duration::from_secs(10);

/// Names and contents of the files of a container's cgroup in the guest.
pub(crate) type CgroupFiles = BTreeMap<String, String>;

/// The reason why there are no events.
#[derive(Debug, Error)]
pub(crate) enum EventsError {
    #[error("container with id {0} is not running")]
    NotRunning(ContainerId),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl EventsError {
    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Request(error) => error.exit_code(),
            _ => None,
        }
    }
}

/// An event of a container.
#[derive(Debug)]
pub(crate) enum ContainerEvent {
    /// The current resource usage.
    Usage(CgroupFiles),
    /// The number of times that the container ran out of memory since the event before.
    OutOfMemory(u64),
}

/// Requests the resource usage of a container.
///
/// # Errors
/// The container is not running, or the request failed.
pub(crate) fn usage(store: &Store, id: &ContainerId) -> Result<CgroupFiles, EventsError> {
    let mut client = connect(store, id)?;
    match client.call(&usage_request(id), &[], Some(STATS_TIMEOUT)).map_err(RequestError::from)? {
        Reply::Statistics(files) => Ok(files),
        _ => Err(RequestError::UnexpectedReply.into()),
    }
}

/// The stream of a container's events until the container ends.
#[derive(Debug)]
pub(crate) struct EventStream {
    connection: Connection,
    id: ContainerId,
    interval: Duration,
    /// Id of the request that is answered when the container ends.
    end: u64,
    /// Id of the request that is answered at the next out-of-memory event, and the number of events before.
    memory: (u64, Option<u64>),
    /// Time of the next request for the resource usage.
    due: Instant,
}

impl EventStream {
    /// Opens a stream that reports the resource usage once per `interval`.
    ///
    /// # Errors
    /// The container is not running, or a request failed.
    pub(crate) fn open(store: &Store, id: &ContainerId, interval: Duration) -> Result<Self, EventsError> {
        Ok(Self::new(connect(store, id)?, id.clone(), interval)?)
    }

    fn new(mut client: Client, id: ContainerId, interval: Duration) -> Result<Self, RequestError> {
        let memory = (client.send(&out_of_memory_request(&id, None), &[])?, None);
        let process = ProcessId { container: id.to_string(), exec: None };
        let end = client.send(&Request::Wait { process }, &[])?;
        let connection = Connection::new(client, None, None);
        Ok(Self { connection, id, interval, end, memory, due: Instant::now() + interval })
    }

    /// Waits for the next event; returns `None` when the container has ended for any reason.
    ///
    /// # Errors
    /// A request failed.
    pub(crate) fn next(&mut self) -> Result<Option<ContainerEvent>, RequestError> {
        loop {
            match self.connection.next(Some(self.due)) {
                Ok(Some(Event::Answer(answer))) if answer.id == self.end => return Ok(None),
                Ok(Some(Event::Answer(answer))) => {
                    if let Some(event) = self.on_answer(answer)? {
                        return Ok(Some(event));
                    }
                }
                Ok(Some(Event::Closed | Event::VmmEnded)) => return Ok(None),
                Ok(Some(Event::Signal(_))) => {}
                Ok(None) => {
                    self.due = Instant::now() + self.interval;
                    self.send(&usage_request(&self.id))?;
                }
                Err(error) if error.is_disconnect() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, request: &Request) -> Result<u64, RequestError> {
        match self.connection.client.send(request, &[]) {
            // Answers that the VMM sent before are still to be read; then comes the `Closed` event.
            Err(ClientError::Closed) => Ok(0),
            result => Ok(result?),
        }
    }

    fn on_answer(&mut self, answer: Answer) -> Result<Option<ContainerEvent>, RequestError> {
        let (memory, known) = self.memory;
        match answer.result {
            Ok(Reply::OutOfMemory(count)) if answer.id == memory => {
                self.memory = (self.send(&out_of_memory_request(&self.id, Some(count)))?, Some(count));
                Ok(known.map(|known| ContainerEvent::OutOfMemory(count.saturating_sub(known))))
            }
            Ok(Reply::Statistics(files)) => Ok(Some(ContainerEvent::Usage(files))),
            Ok(_) => Err(RequestError::UnexpectedReply),
            // The container has ended already, and the answer that ends the stream follows.
            Err(failure) if failure.kind == FailureKind::WrongState => Ok(None),
            Err(failure) => Err(RequestError::Failure(failure)),
        }
    }
}

fn connect(store: &Store, id: &ContainerId) -> Result<Client, EventsError> {
    let record = store.record(id)?;
    if status(&record, &store.dir(id)) == Phase::Stopped {
        return Err(EventsError::NotRunning(id.clone()));
    }
    Ok(control(&store.dir(id)).map_err(RequestError::from)?)
}

fn usage_request(id: &ContainerId) -> Request {
    Request::Container(ContainerRequest::Statistics { container: id.to_string() })
}

fn out_of_memory_request(id: &ContainerId, known: Option<u64>) -> Request {
    Request::AwaitOutOfMemory { container: id.to_string(), known }
}
