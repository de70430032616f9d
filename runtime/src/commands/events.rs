//! `vmrt events`

mod stats;

use serde::Serialize;

use self::stats::Stats;
use super::output::print_json;
use crate::base::container_id::ContainerId;
use crate::cli::EventsArgs;
use crate::commands::error::Error;
use crate::sandbox::context::Context;
use crate::sandbox::events::{CgroupFiles, ContainerEvent, EventStream, usage};

/// Maximum number of lines for one event.
const MAX_LINES: u64 = 1000;

/// One line of the output, in runc's format.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

pub(crate) fn run(context: &Context, args: &EventsArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    if args.stats {
        print_usage(&id, &usage(&context.store, &id)?)?;
        return Ok(0);
    }
    let mut events = EventStream::open(&context.store, &id, args.interval)?;
    while let Some(event) = events.next()? {
        match event {
            ContainerEvent::Usage(files) => print_usage(&id, &files)?,
            ContainerEvent::OutOfMemory(times) => print_out_of_memory(&id, times)?,
        }
    }
    Ok(0)
}

fn print_usage(id: &ContainerId, files: &CgroupFiles) -> Result<(), Error> {
    print_json(&Line { kind: "stats", id: id.as_str(), data: Some(Stats::of(files)) }, false)
}

fn print_out_of_memory(id: &ContainerId, times: u64) -> Result<(), Error> {
    let line = Line { kind: "oom", id: id.as_str(), data: None };
    (0..times.min(MAX_LINES)).try_for_each(|_| print_json(&line, false))
}
