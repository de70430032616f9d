//! `vmrt events`

mod stats;

use std::time::{Duration, Instant};

use agent::{FailureKind, ProcessId};
use serde::Serialize;
use vmm::control::{Answer, Client, ClientError, Reply, Request};

use self::stats::Stats;
use super::output::print_json;
use crate::base::container_id::ContainerId;
use crate::cli::EventsArgs;
use crate::commands::error::Error;
use crate::sandbox::connection::{Connection, Event as ConnectionEvent, RequestError};
use crate::sandbox::context::Context;
use crate::sandbox::control_socket::control;
use crate::sandbox::record::Phase;
use crate::sandbox::status::status;

/// Time limit for a guest to report the resource usage of a container.
const STATS_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of lines for one answer.
const MAX_LINES: u64 = 1000;

/// One line of the output, in runc's format.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

pub(crate) fn run(context: &Context, args: &EventsArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    let record = context.store.record(&id)?;
    if status(&record, &context.store.dir(&id)) == Phase::Stopped {
        return Err(Error::IdNotRunning(args.id.clone()));
    }
    let mut client = control(&context.store.dir(&id)).map_err(RequestError::from)?;
    if args.stats {
        let reply = client.call(&statistics(&id), &[], Some(STATS_TIMEOUT)).map_err(RequestError::from)?;
        return print_stats(&id, reply).map(|()| 0);
    }
    Stream::new(client, id, args.interval)?.run()
}

/// The stream of events until the container ends.
struct Stream {
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

impl Stream {
    fn new(mut client: Client, id: ContainerId, interval: Duration) -> Result<Self, RequestError> {
        let memory = (client.send(&out_of_memory(&id, None), &[])?, None);
        let process = ProcessId { container: id.to_string(), exec: None };
        let end = client.send(&Request::Wait { process }, &[])?;
        let connection = Connection::new(client, None, None);
        Ok(Self { connection, id, interval, end, memory, due: Instant::now() + interval })
    }

    /// Prints events until the container ends for any reason.
    fn run(mut self) -> Result<u8, Error> {
        loop {
            match self.connection.next(Some(self.due)) {
                Ok(Some(ConnectionEvent::Answer(answer))) if answer.id == self.end => return Ok(0),
                Ok(Some(ConnectionEvent::Answer(answer))) => self.print(answer)?,
                Ok(Some(ConnectionEvent::Closed | ConnectionEvent::VmmEnded)) => return Ok(0),
                Ok(Some(ConnectionEvent::Signal(_))) => {}
                Ok(None) => {
                    self.due = Instant::now() + self.interval;
                    self.send(&statistics(&self.id))?;
                }
                Err(error) if error.is_disconnect() => return Ok(0),
                Err(error) => return Err(error.into()),
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

    fn print(&mut self, answer: Answer) -> Result<(), Error> {
        let (memory, known) = self.memory;
        match answer.result {
            Ok(Reply::OutOfMemory(count)) if answer.id == memory => {
                self.memory = (self.send(&out_of_memory(&self.id, Some(count)))?, Some(count));
                let times = known.map_or(0, |known| count.saturating_sub(known).min(MAX_LINES));
                (0..times).try_for_each(|_| print_json(&Event { kind: "oom", id: self.id.as_str(), data: None }, false))
            }
            Ok(reply) => print_stats(&self.id, reply),
            // The container has ended already, and the answer that ends the stream follows.
            Err(failure) if failure.kind == FailureKind::WrongState => Ok(()),
            Err(failure) => Err(RequestError::Failure(failure).into()),
        }
    }
}

fn statistics(id: &ContainerId) -> Request {
    Request::Statistics { container: id.to_string() }
}

fn out_of_memory(id: &ContainerId, known: Option<u64>) -> Request {
    Request::AwaitOutOfMemory { container: id.to_string(), known }
}

fn print_stats(id: &ContainerId, reply: Reply) -> Result<(), Error> {
    let Reply::Statistics(files) = reply else { return Err(RequestError::UnexpectedReply.into()) };
    print_json(&Event { kind: "stats", id: id.as_str(), data: Some(Stats::of(&files)) }, false)
}
