//! `vmrt update`

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::error::Error;
use super::refusal::refuse_if;
use crate::base::container_id::ContainerId;
use crate::cli::UpdateArgs;
use crate::sandbox::context::Context;
use crate::sandbox::update::update;
use crate::spec::resources::{self, KERNEL_MEMORY_IGNORED};

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
    update(context, &id, change)?;
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
        // As in runc: callers pass all of `linux.resources`, with devices, to change limits.
        change.remove("devices");
    }
    Ok(change)
}

/// Converts the options to `linux.resources`.
fn from_options(args: &UpdateArgs) -> Result<Value, Error> {
    let number =
        |what, text: &Option<String>| option(text).map(|text| resources::parse_integer(what, text)).transpose();
    let bytes = |what, text: &Option<String>| option(text).map(|text| resources::parse_bytes(what, text)).transpose();
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

/// Makes an object of the fields that have a value; `null` without any, since some objects of the specification require their limit.
fn given<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let fields: Map<String, Value> = fields.collect();
    if fields.is_empty() { Value::Null } else { fields.into() }
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
    fn invalid_numbers_and_unsupported_options_are_refused() {
        let error = |options: &[&str]| change(options).unwrap_err().to_string();
        assert_eq!(error(&["--memory", "much"]), "invalid value for memory: `much`");
        assert_eq!(error(&["--cpu-quota", "1x"]), "invalid value for cpu-quota: `1x`");
        assert!(error(&["--mem-bw-schema", "x"]).starts_with("--mem-bw-schema is refused"));
    }
}
