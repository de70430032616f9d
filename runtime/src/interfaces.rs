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
    for changed in network::changed(&namespace, &record.network)? {
        network::adapt_tap(&namespace, &changed)?;
        change(client, record, changed)?;
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

fn change(client: &mut Client, record: &mut Record, changed: Led) -> Result<(), Error> {
    let Some(led) = record.network.interfaces.iter_mut().find(|led| led.index == changed.index) else { return Ok(()) };
    let container = record.id.clone();
    let interface = Box::new(changed.interface.without(&led.interface));
    let lost = Box::new(led.interface.without(&changed.interface));
    let request = Request::ChangeInterface { container, interface, lost };
    client.call(&request, &[], Some(DEADLINE)).map_err(RequestError::from)?;
    *led = changed;
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
