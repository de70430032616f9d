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
use crate::sandbox::connection::{Connection, Event as Happening, RequestError};
use crate::sandbox::context::Context;
use crate::sandbox::control_socket::control;
use crate::sandbox::record::Phase;
use crate::sandbox::status::status;

/// How long a guest may take to tell what a container uses.
const STATS_DEADLINE: Duration = Duration::from_secs(10);

/// Lines that one answer makes at most.
const MAX_AT_ONCE: u64 = 1000;

/// One line of the output, in runc's form.
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
        let reply = client.call(&statistics(&id), &[], Some(STATS_DEADLINE)).map_err(RequestError::from)?;
        return tell_stats(&id, reply).map(|()| 0);
    }
    Stream::new(client, id, args.interval)?.run()
}

/// What is waited for until the container ends.
struct Stream {
    connection: Connection,
    id: ContainerId,
    interval: Duration,
    /// Id of the request that the container's end answers.
    end: u64,
    /// Id of the request that the next lack of memory answers, and how often there was one before.
    memory: (u64, Option<u64>),
    /// When to ask what the container uses.
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

    /// The end of the container, however it comes, is that of the stream.
    fn run(mut self) -> Result<u8, Error> {
        loop {
            match self.connection.next(Some(self.due)) {
                Ok(Some(Happening::Answer(answer))) if answer.id == self.end => return Ok(0),
                Ok(Some(Happening::Answer(answer))) => self.tell(answer)?,
                Ok(Some(Happening::Closed | Happening::VmmEnded)) => return Ok(0),
                Ok(Some(Happening::Signal(_))) => {}
                Ok(None) => {
                    self.due = Instant::now() + self.interval;
                    self.ask(&statistics(&self.id))?;
                }
                Err(error) if error.is_end() => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn ask(&mut self, request: &Request) -> Result<u64, RequestError> {
        match self.connection.client.send(request, &[]) {
            // What it said before is still to be read; then comes its end.
            Err(ClientError::Closed) => Ok(0),
            result => Ok(result?),
        }
    }

    fn tell(&mut self, answer: Answer) -> Result<(), Error> {
        let (memory, known) = self.memory;
        match answer.result {
            Ok(Reply::OutOfMemory(count)) if answer.id == memory => {
                self.memory = (self.ask(&out_of_memory(&self.id, Some(count)))?, Some(count));
                let times = known.map_or(0, |known| count.saturating_sub(known).min(MAX_AT_ONCE));
                (0..times).try_for_each(|_| print_json(&Event { kind: "oom", id: self.id.as_str(), data: None }, false))
            }
            Ok(reply) => tell_stats(&self.id, reply),
            // Between the end of the container and that of the stream there are no numbers any more.
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

fn tell_stats(id: &ContainerId, reply: Reply) -> Result<(), Error> {
    let Reply::Statistics(files) = reply else { return Err(RequestError::Confused.into()) };
    print_json(&Event { kind: "stats", id: id.as_str(), data: Some(Stats::of(&files)) }, false)
}
