//! State of the sandbox's containers as the controller keeps it: processes and their streams, owners of further containers,
//! and OOM kills. Nothing here talks to the guest.

mod further_containers;
mod oom_kills;
mod process_table;
mod streams;

pub(super) use further_containers::FurtherContainers;
pub(super) use oom_kills::OomKills;
pub(super) use process_table::{Absent, ProcessTable};
pub(super) use streams::{Streams, window_size};

use agent::ProcessId;

/// The id of a container's first process.
pub(super) fn first_process(container: &str) -> ProcessId {
    ProcessId { container: container.to_owned(), exec: None }
}
