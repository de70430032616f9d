//! Lists the processes of a container.

use std::time::Duration;

use agent::{ContainerRequest, ProcessList};
use vmm::control::{Reply, Request};

use super::connection::RequestError;
use super::control_socket::control;
use super::store::Store;
use crate::base::container_id::ContainerId;

/// Time limit for a guest to list its processes.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests the list of the processes of a container that is not stopped.
///
/// # Errors
/// The request failed.
pub(crate) fn list_processes(store: &Store, id: &ContainerId) -> Result<ProcessList, RequestError> {
    let mut client = control(&store.dir(id))?;
    match client.call(
        &Request::Container(ContainerRequest::Processes { container: id.to_string() }),
        &[],
        Some(LIST_TIMEOUT),
    )? {
        Reply::Processes(list) => Ok(list),
        _ => Err(RequestError::UnexpectedReply),
    }
}
