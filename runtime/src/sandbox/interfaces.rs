//! Keeping the interfaces of a guest in step with those of its sandbox's network namespace.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use agent::InterfaceChange;
use thiserror::Error;
use vmm::control::{Client, Request};

use super::connection::RequestError;
use super::name_server;
use super::record::Record;
use super::store::{Locked, StateError, Store};
use crate::host::caller::Caller;
use crate::host::network::{self, AttachedInterface, InterfaceRecord, Namespace, NetworkError};
use crate::host::user_namespace::{self, RootlessError};

/// Name of the command that a VMM calls when its network namespace has changed.
pub(crate) const FOLLOW_COMMAND: &str = "follow-interfaces";

/// How long the guest may take to set up or to remove an interface.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why the guest's interfaces are not those of its network namespace.
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
    /// The exit status of a command that fails with it, where that does not depend on the command.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Request(error) => error.exit_code(),
            _ => None,
        }
    }
}

/// The command line that a VMM calls when its network namespace has changed; empty for a machine that can have no interface.
pub(crate) fn follow_command(program: &Path, store: &Store, record: &Record) -> Vec<OsString> {
    if record.network.slots == 0 {
        return Vec::new();
    }
    let root = store.root().as_os_str();
    let words = [program.as_os_str(), "--root".as_ref(), root, FOLLOW_COMMAND.as_ref(), record.id.as_ref()];
    words.map(OsStr::to_owned).into()
}

/// Changes the guest's interfaces to what those of its network namespace are now, and attaches those that are new there.
///
/// # Errors
/// One cannot be changed or attached: those before it are, it and those after it are left as they were.
pub(crate) fn update(client: &mut Client, locked: &Locked, record: &mut Record) -> Result<(), InterfacesError> {
    if record.network.slots == 0 {
        return Ok(());
    }
    if record.user_namespace && Caller::find() == Caller::User {
        // The namespace is the user's, but only its root may change anything in it.
        record.network = user_namespace::run_as_root_of(record.vmm, || {
            update_all(client, locked, record)?;
            Ok::<_, InterfacesError>(record.network.clone())
        })?;
        return Ok(());
    }
    update_all(client, locked, record)
}

fn update_all(client: &mut Client, locked: &Locked, record: &mut Record) -> Result<(), InterfacesError> {
    let namespace = Namespace::of(record.vmm)?;
    let changed = network::changed(&namespace, &record.network)?;
    if !changed.is_empty() {
        changed.iter().try_for_each(|one| network::update_tap(&namespace, one))?;
        change(client, record, &changed)?;
        locked.write(record)?;
    }
    let attachments = network::attach(&namespace, record.vmm, &record.network)?;
    for (done, one) in attachments.iter().enumerate() {
        if let Err(error) = add(client, record, one) {
            let rest: Vec<_> = attachments[done..].iter().map(|one| one.record.clone()).collect();
            network::detach(&namespace, record.vmm, &rest)?;
            return Err(error.into());
        }
        record.network.interfaces.push(one.record.clone());
        locked.write(record)?;
    }
    Ok(())
}

fn change(client: &mut Client, record: &mut Record, changed: &[InterfaceRecord]) -> Result<(), RequestError> {
    let interfaces = &mut record.network.interfaces;
    let now = |attached: &InterfaceRecord| changed.iter().find(|changed| changed.index == attached.index);
    let change_of = |attached: &InterfaceRecord| {
        let interface = now(attached)?.interface.clone();
        let lost = attached.interface.without(&interface);
        Some(InterfaceChange { interface, lost })
    };
    let changes = interfaces.iter().filter_map(change_of).collect();
    let request = Request::ChangeInterfaces { container: record.id.clone(), changes };
    client.call(&request, &[], Some(DEADLINE))?;
    for attached in interfaces {
        if let Some(now) = now(attached) {
            *attached = now.clone();
        }
    }
    Ok(())
}

fn add(client: &mut Client, record: &mut Record, one: &AttachedInterface) -> Result<(), RequestError> {
    let asked = record.network.resolv_conf.take_if(|file| name_server::is_asked(file));
    let (container, interface) = (record.id.clone(), Box::new(one.record.interface.clone()));
    let request = Request::AddInterface { container, interface, name_server: asked.is_some() };
    client.call(&request, &[one.tap()], Some(DEADLINE))?;
    Ok(())
}

/// Detaches interfaces from the guest that were removed from its network namespace.
pub(crate) fn detach_removed(client: &mut Client, locked: &Locked, record: &mut Record) -> Result<(), InterfacesError> {
    let namespace = Namespace::of(record.vmm)?;
    for attached in network::removed(&namespace, &record.network)? {
        let request = Request::RemoveInterface { container: record.id.clone(), name: attached.interface.name.clone() };
        let removed = client.call(&request, &[], Some(DEADLINE)).map_err(RequestError::from);
        // Without its tap the interface transfers nothing, whatever became of it in the guest.
        network::detach(&namespace, record.vmm, std::slice::from_ref(&attached))?;
        record.network.interfaces.retain(|other| *other != attached);
        locked.write(record)?;
        removed?;
    }
    Ok(())
}
