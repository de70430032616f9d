//! Limits of a container, `linux.resources`, and changes of them while it runs.

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::base::log::Log;

/// Why a change of the limits is invalid.
#[derive(Debug, Error)]
pub(crate) enum ResourcesError {
    #[error("invalid value for {name}: `{text}`")]
    Number { name: &'static str, text: String },
    #[error("encode the container's limits")]
    Encode(#[source] serde_json::Error),
    #[error("the change is not a valid `linux.resources`")]
    Invalid(#[source] serde_json::Error),
}

/// runc's warning about limits of kernel memory.
pub(crate) const KERNEL_MEMORY_IGNORED: &str = "Kernel memory settings are ignored and will be removed";

/// Members for which zero is a value. For all others, zero means no change.
const ZERO_IS_A_VALUE: [&str; 2] = ["idle", "burst"];

/// Applies `change`, a `linux.resources` of which any part may be missing, to the limits `before`.
pub(crate) fn merge(before: Option<&LinuxResources>, change: Value) -> Result<LinuxResources, ResourcesError> {
    let mut merged = serde_json::to_value(before).map_err(ResourcesError::Encode)?;
    overlay(&mut merged, change);
    serde_json::from_value(if merged.is_null() { Map::new().into() } else { merged }).map_err(ResourcesError::Invalid)
}

/// Merges `change` into `onto`: objects by member, other values as a whole.
fn overlay(onto: &mut Value, change: Value) {
    match change {
        Value::Null => {}
        Value::Object(members) => {
            if !onto.is_object() {
                *onto = Map::new().into();
            }
            for (name, member) in members.into_iter().filter(|(name, member)| is_change(name, member)) {
                overlay(&mut onto[name], member);
            }
        }
        value => *onto = value,
    }
}

/// Whether a member of a change has a value other than no change.
fn is_change(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Number(number) => number.as_f64() != Some(0.0) || ZERO_IS_A_VALUE.contains(&name),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(members) => members.iter().any(|(name, value)| is_change(name, value)),
        Value::Bool(_) => true,
    }
}

/// Removes limits of kernel memory, which cgroup v2 does not have, with a warning.
pub(crate) fn remove_kernel_memory(resources: &mut LinuxResources, log: &Log) {
    let Some(memory) = resources.memory_mut() else { return };
    if [memory.kernel(), memory.kernel_tcp()].into_iter().flatten().any(|limit| limit != 0) {
        log.warn(KERNEL_MEMORY_IGNORED);
    }
    memory.set_kernel(None).set_kernel_tcp(None);
}

/// Parses an integer. `name` names the value in the error.
pub(crate) fn parse_integer(name: &'static str, text: &str) -> Result<i64, ResourcesError> {
    text.parse().map_err(|_| ResourcesError::Number { name, text: text.into() })
}

/// Parses an amount of memory into bytes. As in Docker, it is a number with an optional binary suffix, or -1. `name` names the value in
/// the error.
pub(crate) fn parse_bytes(name: &'static str, text: &str) -> Result<i64, ResourcesError> {
    let invalid = || ResourcesError::Number { name, text: text.into() };
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
    fn missing_members_do_not_change() {
        let before = json!({"memory": {"limit": 100, "swap": 200}, "cpu": {"shares": 512, "idle": 1}});
        let change = json!({"memory": {"limit": 50, "swap": 0, "reservation": null}, "cpu": {"shares": 0, "idle": 0},
            "pids": {"limit": 0}, "blockIO": {"weight": 0}});
        let expected = json!({"memory": {"limit": 50, "swap": 200}, "cpu": {"shares": 512, "idle": 0}});
        assert_eq!(merged(&before, change), expected);
        assert_eq!(merged(&json!({}), json!({"pids": {"limit": -1}})), json!({"pids": {"limit": -1}}));
        assert_eq!(merge(None, Value::Null).unwrap(), serde_json::from_value(json!({})).unwrap());
    }

    #[test]
    fn invalid_resources_are_refused() {
        assert!(matches!(merge(None, json!({"memory": {"limit": "x"}})), Err(ResourcesError::Invalid(_))));
        assert!(matches!(merge(None, json!([1])), Err(ResourcesError::Invalid(_))));
    }

    #[test]
    fn amounts_of_memory_are_parsed_as_in_docker() {
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
