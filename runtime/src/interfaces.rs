//! Having the guest of a container follow the interfaces of its network namespace.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use vmm::control::{Client, Request};

use crate::caller::Caller;
use crate::commands::follow_interfaces::NAME;
use crate::connection::RequestError;
use crate::error::Error;
use crate::name_server;
use crate::network::{self, Connected, Namespace};
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

/// Leads interfaces into the guest that are new in its network namespace.
///
/// # Errors
/// One cannot be led in: those before it are, it and those after it are left as they were.
pub(crate) fn lead_new(client: &mut Client, locked: &Locked, record: &mut Record) -> Result<(), Error> {
    if record.network.slots == 0 {
        return Ok(());
    }
    if record.user_namespace && Caller::find() == Caller::User {
        // The namespace is the user's, but only its root may change anything in it.
        record.network = rootless::as_root_of(record.vmm, || {
            lead_all(client, locked, record)?;
            Ok(record.network.clone())
        })?;
        return Ok(());
    }
    lead_all(client, locked, record)
}

fn lead_all(client: &mut Client, locked: &Locked, record: &mut Record) -> Result<(), Error> {
    let namespace = Namespace::of(record.vmm)?;
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

fn add(client: &mut Client, record: &mut Record, one: &Connected) -> Result<(), Error> {
    let asked = record.network.resolv_conf.take_if(|file| name_server::is_asked(file));
    let (container, interface) = (record.id.clone(), Box::new(one.interface.clone()));
    let request = Request::AddInterface { container, interface, name_server: asked.is_some() };
    client.call(&request, &[one.tap()], Some(DEADLINE)).map_err(RequestError::from)?;
    Ok(())
}

/// Takes interfaces away from the guest that have left its network namespace.
pub(crate) fn take_gone(client: &mut Client, locked: &Locked, record: &mut Record) -> Result<(), Error> {
    let namespace = Namespace::of(record.vmm)?;
    for led in network::gone(&namespace, &record.network)? {
        let request = Request::RemoveInterface { container: record.id.clone(), name: led.name.clone() };
        let taken = client.call(&request, &[], Some(DEADLINE)).map_err(RequestError::from);
        // Without its tap the interface leads nowhere, whatever became of it in the guest.
        network::release(&namespace, record.vmm, std::slice::from_ref(&led))?;
        record.network.interfaces.retain(|other| *other != led);
        locked.write(record)?;
        taken?;
    }
    Ok(())
}
