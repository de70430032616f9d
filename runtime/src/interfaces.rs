//! Having the guest of a container follow the interfaces of its network namespace.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use agent::InterfaceChange;
use vmm::control::{Client, Request};

use crate::caller::Caller;
use crate::commands::follow_interfaces::NAME;
use crate::connection::RequestError;
use crate::error::Error;
use crate::name_server;
use crate::network::{self, Connected, Led, Namespace};
use crate::rootless;
use crate::state::{Locked, Record, Store};

/// How long the guest may take to set up an interface, or to take one away.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a VMM calls to have its guest follow its network namespace: nothing, for a machine that can have no interface.
pub(crate) fn follow_command(program: &Path, store: &Store, record: &Record) -> Vec<OsString> {
    if record.network.slots == 0 {
        return Vec::new();
    }
    let words = [program.as_os_str(), "--root".as_ref(), store.root().as_os_str(), NAME.as_ref(), record.id.as_ref()];
    words.map(OsStr::to_owned).into()
}

/// Changes the guest's interfaces to what those of its network namespace are now, and leads those into it that are new there.
///
/// # Errors
/// One cannot be changed or led in: those before it are, it and those after it are left as they were.
pub(crate) fn update(client: &mut Client, locked: &Locked, record: &mut Record) -> Result<(), Error> {
    if record.network.slots == 0 {
        return Ok(());
    }
    if record.user_namespace && Caller::find() == Caller::User {
        // The namespace is the user's, but only its root may change anything in it.
        record.network = rootless::as_root_of(record.vmm, || {
            update_all(client, locked, record)?;
            Ok(record.network.clone())
        })?;
        return Ok(());
    }
    update_all(client, locked, record)
}

fn update_all(client: &mut Client, locked: &Locked, record: &mut Record) -> Result<(), Error> {
    let namespace = Namespace::of(record.vmm)?;
    let changed = network::changed(&namespace, &record.network)?;
    if !changed.is_empty() {
        changed.iter().try_for_each(|one| network::adapt_tap(&namespace, one))?;
        change(client, record, &changed)?;
        locked.write(record)?;
    }
    let connected = network::connect(&namespace, record.vmm, &record.network)?;
    for (done, one) in connected.iter().enumerate() {
        if let Err(error) = add(client, record, one) {
            let rest: Vec<_> = connected[done..].iter().map(|one| one.led.clone()).collect();
            network::release(&namespace, record.vmm, &rest)?;
            return Err(error);
        }
        record.network.interfaces.push(one.led.clone());
        locked.write(record)?;
    }
    Ok(())
}

fn change(client: &mut Client, record: &mut Record, changed: &[Led]) -> Result<(), Error> {
    let interfaces = &mut record.network.interfaces;
    let now = |led: &Led| changed.iter().find(|changed| changed.index == led.index);
    let change_of = |led: &Led| {
        let interface = now(led)?.interface.clone();
        let lost = led.interface.without(&interface);
        Some(InterfaceChange { interface, lost })
    };
    let changes = interfaces.iter().filter_map(change_of).collect();
    let request = Request::ChangeInterfaces { container: record.id.clone(), changes };
    client.call(&request, &[], Some(DEADLINE)).map_err(RequestError::from)?;
    for led in interfaces {
        if let Some(now) = now(led) {
            *led = now.clone();
        }
    }
    Ok(())
}

fn add(client: &mut Client, record: &mut Record, one: &Connected) -> Result<(), Error> {
    let asked = record.network.resolv_conf.take_if(|file| name_server::is_asked(file));
    let (container, interface) = (record.id.clone(), Box::new(one.led.interface.clone()));
    let request = Request::AddInterface { container, interface, name_server: asked.is_some() };
    client.call(&request, &[one.tap()], Some(DEADLINE)).map_err(RequestError::from)?;
    Ok(())
}

/// Takes interfaces away from the guest that have left its network namespace.
pub(crate) fn take_gone(client: &mut Client, locked: &Locked, record: &mut Record) -> Result<(), Error> {
    let namespace = Namespace::of(record.vmm)?;
    for led in network::gone(&namespace, &record.network)? {
        let request = Request::RemoveInterface { container: record.id.clone(), name: led.interface.name.clone() };
        let taken = client.call(&request, &[], Some(DEADLINE)).map_err(RequestError::from);
        // Without its tap the interface leads nowhere, whatever became of it in the guest.
        network::release(&namespace, record.vmm, std::slice::from_ref(&led))?;
        record.network.interfaces.retain(|other| *other != led);
        locked.write(record)?;
        taken?;
    }
    Ok(())
}
