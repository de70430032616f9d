//! Updates the interfaces of a guest to match those of its sandbox's network namespace.

use std::time::Duration;

use agent::{ContainerRequest, InterfaceChange};
use thiserror::Error;
use vmm::control::{Client, Request};

use super::connection::RequestError;
use super::name_server;
use super::record::Record;
use super::store::{LockedDir, StateError};
use crate::host::caller::Caller;
use crate::host::network::{self, AttachedInterface, InterfaceRecord, NetworkError, OpenNamespace};
use crate::host::user_namespace::{self, RootlessError};

/// Name of the command that the helper runs when its network namespace has changed.
pub(crate) const UPDATE_COMMAND: &str = "update-interfaces";

/// Time limit for the guest to add, change or remove an interface.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why the guest's interfaces were not updated.
#[derive(Debug, Error)]
pub(crate) enum InterfacesError {
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Rootless(#[from] RootlessError),
}

impl InterfacesError {
    /// The exit status of a command that fails with this error; `None` if it depends on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Request(error) => error.exit_code(),
            _ => None,
        }
    }
}

/// Changes the guest's interfaces to the current settings of those in the network namespace, and attaches new ones.
///
/// # Errors
/// An interface cannot be changed or attached. The interfaces before it are updated; it and those after it are not.
pub(crate) fn update(client: &mut Client, locked: &LockedDir, record: &mut Record) -> Result<(), InterfacesError> {
    as_root(client, locked, record, update_all)
}

/// Removes interfaces from the guest that are no longer in the network namespace, and updates the others as [`update`] does.
///
/// # Errors
/// An interface cannot be removed, changed or attached. Those before it are up to date.
pub(crate) fn follow(client: &mut Client, locked: &LockedDir, record: &mut Record) -> Result<(), InterfacesError> {
    as_root(client, locked, record, |client, locked, record| {
        detach_removed(client, locked, record)?;
        update_all(client, locked, record)
    })
}

/// Runs `work` as root of the network namespace, in another process if this one is not.
fn as_root(
    client: &mut Client,
    locked: &LockedDir,
    record: &mut Record,
    work: impl FnOnce(&mut Client, &LockedDir, &mut Record) -> Result<(), InterfacesError>,
) -> Result<(), InterfacesError> {
    if record.network.slots == 0 {
        return Ok(());
    }
    if record.user_namespace && Caller::find() == Caller::User {
        // The namespace belongs to the caller, but only its root may change its interfaces.
        record.network = user_namespace::run_as_root_of(record.vmm, || {
            work(client, locked, record)?;
            Ok::<_, InterfacesError>(record.network.clone())
        })?;
        return Ok(());
    }
    work(client, locked, record)
}

fn update_all(client: &mut Client, locked: &LockedDir, record: &mut Record) -> Result<(), InterfacesError> {
    let namespace = OpenNamespace::of_process(record.vmm)?;
    let changed = network::list_changed(&namespace, &record.network)?;
    if !changed.is_empty() {
        let restricted = record.network.anti_spoofing;
        changed.iter().try_for_each(|interface| network::update_tap(&namespace, interface, restricted))?;
        change(client, record, &changed)?;
        locked.write(record)?;
    }
    let attached = network::attach(&namespace, record.vmm, &record.network)?;
    for (added, interface) in attached.iter().enumerate() {
        if let Err(error) = add(client, record, interface) {
            let rest: Vec<_> = attached[added..].iter().map(|interface| interface.record.clone()).collect();
            network::detach(&namespace, record.vmm, &rest)?;
            return Err(error.into());
        }
        record.network.interfaces.push(interface.record.clone());
        locked.write(record)?;
    }
    Ok(())
}

fn change(client: &mut Client, record: &mut Record, changed: &[InterfaceRecord]) -> Result<(), RequestError> {
    let interfaces = &mut record.network.interfaces;
    let changed_to = |attached: &InterfaceRecord| changed.iter().find(|changed| changed.index == attached.index);
    let change_of = |attached: &InterfaceRecord| {
        let interface = changed_to(attached)?.interface.clone();
        let removed = attached.interface.without(&interface);
        Some(InterfaceChange { interface, removed })
    };
    let changes = interfaces.iter().filter_map(change_of).collect();
    let request = Request::Container(ContainerRequest::ChangeInterfaces { container: record.id.clone(), changes });
    client.call(&request, &[], Some(TIMEOUT))?;
    for attached in interfaces {
        if let Some(changed) = changed_to(attached) {
            *attached = changed.clone();
        }
    }
    Ok(())
}

fn add(client: &mut Client, record: &mut Record, attached: &AttachedInterface) -> Result<(), RequestError> {
    let resolv_conf = record.network.resolv_conf.take_if(|file| name_server::is_configured(file));
    let (container, interface) = (record.id.clone(), Box::new(attached.record.interface.clone()));
    let request = Request::AddInterface { container, interface, name_server: resolv_conf.is_some() };
    client.call(&request, &[attached.tap()], Some(TIMEOUT))?;
    Ok(())
}

fn detach_removed(client: &mut Client, locked: &LockedDir, record: &mut Record) -> Result<(), InterfacesError> {
    let namespace = OpenNamespace::of_process(record.vmm)?;
    for attached in network::list_removed(&namespace, &record.network)? {
        let request = Request::Container(ContainerRequest::RemoveInterface {
            container: record.id.clone(),
            name: attached.interface.name.clone(),
        });
        let removed = client.call(&request, &[], Some(TIMEOUT)).map_err(RequestError::from);
        // The tap is removed even if the guest's interface could not be: without a tap it transfers nothing.
        network::detach(&namespace, record.vmm, std::slice::from_ref(&attached))?;
        record.network.interfaces.retain(|other| *other != attached);
        locked.write(record)?;
        removed?;
    }
    Ok(())
}
