//! A container's limits, and changes of them while it runs.

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::base::log::Log;

/// Why limits cannot be changed so.
#[derive(Debug, Error)]
pub(crate) enum ResourcesError {
    #[error("invalid value for {what}: `{text}`")]
    Number { what: &'static str, text: String },
    #[error("encode the container's limits")]
    Encode(#[source] serde_json::Error),
    #[error("what was given is no valid `linux.resources`")]
    Invalid(#[source] serde_json::Error),
}

/// What runc says of limits of kernel memory.
pub(crate) const KERNEL_MEMORY_IGNORED: &str = "Kernel memory settings are ignored and will be removed";

/// Members whose zero says something; that of all others says "as it is".
const ZERO_COUNTS: [&str; 2] = ["idle", "burst"];

/// The limits after `change`, `linux.resources` of which any part may be missing.
pub(crate) fn merge(before: Option<&LinuxResources>, change: Value) -> Result<LinuxResources, ResourcesError> {
    let mut merged = serde_json::to_value(before).map_err(ResourcesError::Encode)?;
    overlay(&mut merged, change);
    serde_json::from_value(if merged.is_null() { Map::new().into() } else { merged }).map_err(ResourcesError::Invalid)
}

fn overlay(onto: &mut Value, change: Value) {
    match change {
        Value::Null => {}
        Value::Object(members) => {
            if !onto.is_object() {
                *onto = Map::new().into();
            }
            for (name, member) in members.into_iter().filter(|(name, member)| is_given(name, member)) {
                overlay(&mut onto[name], member);
            }
        }
        value => *onto = value,
    }
}

fn is_given(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Number(number) => number.as_f64() != Some(0.0) || ZERO_COUNTS.contains(&name),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(members) => members.iter().any(|(name, value)| is_given(name, value)),
        Value::Bool(_) => true,
    }
}

/// Limits of kernel memory, which cgroup v2 has not, are told of and none.
pub(crate) fn remove_kernel_memory(resources: &mut LinuxResources, log: &Log) {
    let Some(memory) = resources.memory_mut() else { return };
    if [memory.kernel(), memory.kernel_tcp()].into_iter().flatten().any(|limit| limit != 0) {
        log.warn(KERNEL_MEMORY_IGNORED);
    }
    memory.set_kernel(None).set_kernel_tcp(None);
}

/// A whole number.
pub(crate) fn parse_integer(what: &'static str, text: &str) -> Result<i64, ResourcesError> {
    text.parse().map_err(|_| ResourcesError::Number { what, text: text.into() })
}

/// An amount of memory with a binary suffix, or in bytes without one, or -1.
pub(crate) fn parse_bytes(what: &'static str, text: &str) -> Result<i64, ResourcesError> {
    let invalid = || ResourcesError::Number { what, text: text.into() };
    if text == "-1" {
        return Ok(-1);
    }
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        "p" => 1 << 50,
        _ => return Err(invalid()),
    };
    let whole = digits.parse::<u64>().ok().and_then(|count| i64::try_from(count.checked_mul(unit)?).ok());
    whole.ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(before: &Value, change: Value) -> Value {
        let before: LinuxResources = serde_json::from_value(before.clone()).unwrap();
        serde_json::to_value(merge(Some(&before), change).unwrap()).unwrap()
    }

    #[test]
    fn what_is_not_given_stays() {
        let before = json!({"memory": {"limit": 100, "swap": 200}, "cpu": {"shares": 512, "idle": 1}});
        let change = json!({"memory": {"limit": 50, "swap": 0, "reservation": null}, "cpu": {"shares": 0, "idle": 0},
            "pids": {"limit": 0}, "blockIO": {"weight": 0}});
        let expected = json!({"memory": {"limit": 50, "swap": 200}, "cpu": {"shares": 512, "idle": 0}});
        assert_eq!(merged(&before, change), expected);
        assert_eq!(merged(&json!({}), json!({"pids": {"limit": -1}})), json!({"pids": {"limit": -1}}));
        assert_eq!(merge(None, Value::Null).unwrap(), serde_json::from_value(json!({})).unwrap());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(merge(None, json!({"memory": {"limit": "x"}})), Err(ResourcesError::Invalid(_))));
        assert!(matches!(merge(None, json!([1])), Err(ResourcesError::Invalid(_))));
    }

    #[test]
    fn amounts_are_read_as_docker_writes_them() {
        for (text, value) in
            [("1024", 1024), ("1k", 1024), ("64M", 64 << 20), ("2GiB", 2 << 30), ("1mb", 1 << 20), ("-1", -1)]
        {
            assert_eq!(parse_bytes("memory", text).unwrap(), value, "{text}");
        }
        for text in ["", "m", "-2", "1x", "99999999999T"] {
            assert!(parse_bytes("memory", text).is_err(), "{text}");
        }
    }
}
