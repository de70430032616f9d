//! `vmrt update`

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Spec};
use serde_json::{Map, Value, json};
use vmm::control::Request;

use super::refuse_if;
use super::state::status;
use crate::bundle::Bundle;
use crate::cli::UpdateArgs;
use crate::connection::RequestError;
use crate::context::Context;
use crate::error::Error;
use crate::id::ContainerId;
use crate::limits::Limits;
use crate::resources::{self, merge};
use crate::sandbox::control;
use crate::shares::forget_host_cpus;
use crate::sizing::check_update;
use crate::state::{Phase, Record};

/// How long a guest may take to set limits: one below what is in use has memory written back or somebody killed.
const UPDATE_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn run(context: &Context, args: &UpdateArgs) -> Result<u8, Error> {
    check_args(args)?;
    let id: ContainerId = args.id.parse()?;
    let change = match &args.resources {
        Some(path) => read(path)?,
        None => from_options(args)?,
    };
    if args.kernel_memory.is_some() || args.kernel_memory_tcp.is_some() {
        context.log.warn("Kernel memory settings are ignored and will be removed");
    }
    let locked = context.store.lock(&id)?;
    let mut record = context.store.record(&id)?;
    if status(&record, &locked.dir) == Phase::Stopped {
        return Err(Error::NotRunning);
    }
    let before = current(&record)?;
    let after = merge(before.linux().as_ref().and_then(|linux| linux.resources().as_ref()), change)?;
    let after = with_resources(&before, after);
    check_update(&before, &after, record.machine)?;
    if let Err(error) = apply(context, &id, &record, &after) {
        // Half an update is none. What was there before could be set once.
        let _ = apply(context, &id, &record, &before);
        return Err(error);
    }
    record.resources = after.linux().as_ref().and_then(|linux| linux.resources().clone());
    locked.write(&record)?;
    Ok(0)
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
fn current(record: &Record) -> Result<Spec, Error> {
    let spec = Bundle::load(&record.bundle)?.spec;
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

/// Sets the limits of the container in the guest, which checks them, and those of its VMM.
fn apply(context: &Context, id: &ContainerId, record: &Record, spec: &Spec) -> Result<(), Error> {
    let mut guest = spec.clone();
    forget_host_cpus(&mut guest);
    let resources = guest.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let mut client = control(&context.store.dir(id)).map_err(RequestError::from)?;
    let request = Request::Update { container: id.to_string(), resources: Box::new(resources) };
    client.call(&request, &[], Some(UPDATE_DEADLINE)).map_err(RequestError::from)?;
    let limits = Limits::of(spec, record.machine);
    if let Some(scope) = &record.scope {
        scope.set(&limits)?;
    }
    Ok(record.cgroup.update(&limits)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Arguments, Command};

    fn change(options: &[&str]) -> Result<Value, Error> {
        let line = ["vmrt", "update"].iter().chain(options).chain(&["web"]);
        let Command::Update(args) = Arguments::try_parse_from(line).unwrap().command else { unreachable!() };
        check_args(&args)?;
        from_options(&args)
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
