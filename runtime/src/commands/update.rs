//! `vmrt update`

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Spec};
use serde_json::{Map, Value, json};
use vmm::control::{Client, Reply, Request};

use super::refusal::refuse_if;
use crate::base::container_id::ContainerId;
use crate::cli::UpdateArgs;
use crate::commands::error::Error;
use crate::host::cgroup::placement;
use crate::sandbox::connection::RequestError;
use crate::sandbox::context::Context;
use crate::sandbox::control_socket::control;
use crate::sandbox::record::{Phase, Record};
use crate::sandbox::status::status;
use crate::sandbox::store::Store;
use crate::spec::block_io;
use crate::spec::guest::remove_host_cpus;
use crate::spec::limits::Limits;
use crate::spec::resources::{self, KERNEL_MEMORY_IGNORED, merge, remove_kernel_memory};
use crate::spec::sizing::{Size, changed_memory, changed_vcpus};

/// How long a guest may take to set limits: one below what is in use has memory written back or somebody killed.
const UPDATE_DEADLINE: Duration = Duration::from_secs(30);

/// How long a guest may take to get or give back all of the memory; the VMM watches that it gets on with it.
const MEMORY_DEADLINE: Duration = Duration::from_secs(120);

pub(crate) fn run(context: &Context, args: &UpdateArgs) -> Result<u8, Error> {
    check_args(args)?;
    let id: ContainerId = args.id.parse()?;
    let change = match &args.resources {
        Some(path) => read(path)?,
        None => from_options(args)?,
    };
    if args.kernel_memory.is_some() || args.kernel_memory_tcp.is_some() {
        context.log.warn(KERNEL_MEMORY_IGNORED);
    }
    let locked = context.store.lock(&id)?;
    let mut record = context.store.record(&id)?;
    if status(&record, &locked.dir) == Phase::Stopped {
        return Err(Error::NotRunning);
    }
    let before = current(&context.store, &id, &record)?;
    let mut after = merge(before.linux().as_ref().and_then(|linux| linux.resources().as_ref()), change)?;
    remove_kernel_memory(&mut after, &context.log);
    let after = with_resources(&before, after);
    let wanted =
        if record.has_machine() { Resize::between(&before, &after, record.machine)? } else { Resize::default() };
    let machine = record.machine;
    let applied = apply(context, &id, &mut record, &after, wanted);
    match &applied {
        Ok(()) => record.resources = after.linux().as_ref().and_then(|linux| linux.resources().clone()),
        Err(_) => {
            // Half an update is none. What was there before could be set once.
            let _ = apply(context, &id, &mut record, &before, wanted.back_to(machine));
        }
    }
    locked.write(&record)?;
    applied.map(|()| 0)
}

fn check_args(args: &UpdateArgs) -> Result<(), Error> {
    let reason = "is refused: there is no Intel RDT in the guest";
    refuse_if(args.l3_cache_schema.is_some(), "--l3-cache-schema", reason)?;
    refuse_if(args.mem_bw_schema.is_some(), "--mem-bw-schema", reason)
}

fn read(path: &Path) -> Result<Value, Error> {
    let failed = |source| Error::ResourcesFile { path: path.into(), source };
    let mut text = Vec::new();
    match path.to_str() {
        Some("-") => io::stdin().read_to_end(&mut text).map(drop).map_err(failed)?,
        _ => text = fs::read(path).map_err(failed)?,
    }
    let mut change: Value =
        serde_json::from_slice(&text).map_err(|source| Error::ResourcesJson { path: path.into(), source })?;
    if let Some(change) = change.as_object_mut() {
        // As in runc: who updates limits sends all of the specification's resources along.
        change.remove("devices");
    }
    Ok(change)
}

/// The options as `linux.resources`.
fn from_options(args: &UpdateArgs) -> Result<Value, Error> {
    let number = |what, text: &Option<String>| option(text).map(|text| resources::number(what, text)).transpose();
    let bytes = |what, text: &Option<String>| option(text).map(|text| resources::bytes(what, text)).transpose();
    let list = |text: &Option<String>| option(text).map(str::to_owned);
    Ok(json!({
        "blockIO": given([("weight", (args.blkio_weight != 0).then(|| json!(args.blkio_weight)))]),
        "cpu": given([
            ("period", number("cpu-period", &args.cpu_period)?.map(Value::from)),
            ("quota", number("cpu-quota", &args.cpu_quota)?.map(Value::from)),
            ("burst", number("cpu-burst", &args.cpu_burst)?.map(Value::from)),
            ("shares", number("cpu-share", &args.cpu_share)?.map(Value::from)),
            ("realtimePeriod", number("cpu-rt-period", &args.cpu_rt_period)?.map(Value::from)),
            ("realtimeRuntime", number("cpu-rt-runtime", &args.cpu_rt_runtime)?.map(Value::from)),
            ("idle", number("cpu-idle", &args.cpu_idle)?.map(Value::from)),
            ("cpus", list(&args.cpuset_cpus).map(Value::from)),
            ("mems", list(&args.cpuset_mems).map(Value::from)),
        ]),
        "memory": given([
            ("limit", bytes("memory", &args.memory)?.map(Value::from)),
            ("reservation", bytes("memory-reservation", &args.memory_reservation)?.map(Value::from)),
            ("swap", bytes("memory-swap", &args.memory_swap)?.map(Value::from)),
        ]),
        "pids": given([("limit", (args.pids_limit != 0).then(|| json!(args.pids_limit)))]),
    }))
}

fn option(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// An object of what was given; `null` for nothing, since some of its kind must have their limit.
fn given<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let fields: Map<String, Value> = fields.collect();
    if fields.is_empty() { Value::Null } else { fields.into() }
}

/// The specification with the limits as they are now.
fn current(store: &Store, id: &ContainerId, record: &Record) -> Result<Spec, Error> {
    let spec = store.spec(id)?;
    Ok(match &record.resources {
        Some(resources) => with_resources(&spec, resources.clone()),
        None => spec,
    })
}

fn with_resources(spec: &Spec, resources: LinuxResources) -> Spec {
    let mut spec = spec.clone();
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_resources(Some(resources));
    spec.set_linux(Some(linux));
    spec
}

/// What of a machine's size is to change.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Resize {
    memory_mib: Option<u64>,
    vcpus: Option<u8>,
}

impl Resize {
    /// What follows from a change of the container's limits.
    fn between(before: &Spec, after: &Spec, machine: Size) -> Result<Self, Error> {
        Ok(Self { memory_mib: changed_memory(before, after)?, vcpus: changed_vcpus(before, after, machine) })
    }

    /// The same, to what it was before.
    fn back_to(self, machine: Size) -> Self {
        Self { memory_mib: self.memory_mib.map(|_| machine.memory_mib), vcpus: self.vcpus.map(|_| machine.vcpus) }
    }

    /// What makes the machine larger, and what makes it smaller.
    fn split(self, machine: Size) -> (Self, Self) {
        let grown = Self {
            memory_mib: self.memory_mib.filter(|mib| *mib > machine.memory_mib),
            vcpus: self.vcpus.filter(|count| *count > machine.vcpus),
        };
        let shrunk = Self {
            memory_mib: self.memory_mib.filter(|mib| *mib < machine.memory_mib),
            vcpus: self.vcpus.filter(|count| *count < machine.vcpus),
        };
        (grown, shrunk)
    }

    /// How large the machine is to be.
    fn of(self, machine: Size) -> Size {
        Size { memory_mib: self.memory_mib.unwrap_or(machine.memory_mib), vcpus: self.vcpus.unwrap_or(machine.vcpus) }
    }
}

/// Sets the limits of the container in the guest, which checks them, and those of its VMM. Its machine becomes larger before
/// limits are raised, and smaller after they were lowered.
fn apply(context: &Context, id: &ContainerId, record: &mut Record, spec: &Spec, resize: Resize) -> Result<(), Error> {
    let mut client = control(&context.store.dir(id)).map_err(RequestError::from)?;
    let (grown, shrunk) = resize.split(record.machine);
    if grown != Resize::default() {
        limit_vmm(record, spec, grown.of(record.machine))?;
        set_size(&mut client, grown, &mut record.machine)?;
    }
    limit_container(&mut client, record, id, spec)?;
    set_size(&mut client, shrunk, &mut record.machine)?;
    limit_vmm(record, spec, record.machine)
}

/// Resizes the machine. Where the guest does not get as far as it should have grown, it may still have as much.
fn set_size(client: &mut Client, resize: Resize, machine: &mut Size) -> Result<(), Error> {
    if let Some(count) = resize.vcpus {
        machine.vcpus = machine.vcpus.max(count);
        client.call(&Request::SetVcpus { count }, &[], Some(UPDATE_DEADLINE)).map_err(RequestError::from)?;
        machine.vcpus = count;
    }
    if let Some(mib) = resize.memory_mib {
        machine.memory_mib = machine.memory_mib.max(mib);
        machine.memory_mib = set_memory(client, mib, *machine)?;
    }
    Ok(())
}

fn limit_container(client: &mut Client, record: &Record, id: &ContainerId, spec: &Spec) -> Result<(), Error> {
    let mut guest = spec.clone();
    remove_host_cpus(&mut guest);
    if record.has_machine() {
        block_io::remove_host_limits(&mut guest);
    }
    let resources = guest.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let request = Request::Update { container: id.to_string(), resources: Box::new(resources) };
    client.call(&request, &[], Some(UPDATE_DEADLINE)).map_err(RequestError::from)?;
    Ok(())
}

/// Has the machine grow or shrink: the memory that it has then, in MiB.
fn set_memory(client: &mut Client, mib: u64, machine: Size) -> Result<u64, Error> {
    // Its VMM may use as much of the host as this says, so it is not taken at its word: memory comes in blocks of 2 MiB, and
    // what is not given back was there before.
    let most = (mib + 1).max(machine.memory_mib);
    match client.call(&Request::SetMemory { mib }, &[], Some(MEMORY_DEADLINE)).map_err(RequestError::from)? {
        Reply::Memory(mib) if mib <= most => Ok(mib),
        _ => Err(RequestError::Confused.into()),
    }
}

/// Limits the VMM to what a machine of this size may need.
fn limit_vmm(record: &Record, spec: &Spec, machine: Size) -> Result<(), Error> {
    Ok(placement::update(&record.cgroup, record.scope.as_ref(), &Limits::of(spec, machine))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use agent::frame;
    use clap::Parser;
    use vmm::control::Answer;

    use super::*;
    use crate::cli::{Arguments, Command};

    fn change(options: &[&str]) -> Result<Value, Error> {
        let line = ["vmrt", "update"].iter().chain(options).chain(&["web"]);
        let Command::Update(args) = Arguments::try_parse_from(line).unwrap().command else { unreachable!() };
        check_args(&args)?;
        from_options(&args)
    }

    #[test]
    fn a_vmm_does_not_give_itself_more_of_the_host() {
        let machine = Size { memory_mib: 512, vcpus: 1 };
        let asked = |mib, said| {
            let (ours, mut vmm) = UnixStream::pair().unwrap();
            // The first request of a connection has this id.
            frame::write(&mut vmm, &Answer { id: 1, result: Ok(said) }).unwrap();
            set_memory(&mut Client::from_stream(ours), mib, machine).ok()
        };
        assert_eq!(asked(1023, Reply::Memory(1024)), Some(1024), "blocks are of 2 MiB");
        assert_eq!(asked(256, Reply::Memory(512)), Some(512), "nothing was given back");
        for (mib, said) in [(1023, 1025), (256, 513), (1024, u64::MAX)] {
            assert_eq!(asked(mib, Reply::Memory(said)), None, "{mib}, {said}");
        }
        assert_eq!(asked(1024, Reply::Done), None);
    }

    #[test]
    fn options_become_resources() {
        let given = change(&["--memory", "64M", "--memory-swap", "-1", "--cpu-quota", "-1", "--cpuset-cpus", "0-1"]);
        let expected = json!({"blockIO": null, "cpu": {"quota": -1, "cpus": "0-1"},
            "memory": {"limit": 64 << 20, "swap": -1}, "pids": null});
        assert_eq!(given.unwrap(), expected);
        assert_eq!(change(&["--pids-limit", "-1", "--cpu-period", ""]).unwrap()["pids"], json!({"limit": -1}));
    }

    #[test]
    fn what_is_no_number_or_not_there_is_refused() {
        let error = |options: &[&str]| change(options).unwrap_err().to_string();
        assert_eq!(error(&["--memory", "much"]), "invalid value for memory: `much`");
        assert_eq!(error(&["--cpu-quota", "1x"]), "invalid value for cpu-quota: `1x`");
        assert!(error(&["--mem-bw-schema", "x"]).starts_with("--mem-bw-schema is refused"));
    }
}
