//! Parses JSON that contains a process. Accepts forms that runc accepts and the parser of `oci-spec` does not.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::capabilities;
use crate::base::log::Log;

/// Parses `text`. `process` is the JSON pointer to the process in it.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8], process: &str, log: &Log) -> serde_json::Result<T> {
    serde_json::from_slice(text).or_else(|error| {
        let mut value: Value = serde_json::from_slice(text)?;
        let process = value.pointer_mut(process).and_then(Value::as_object_mut);
        let changed = process.is_some_and(|process| normalize(process) | capabilities::remove_unknown(process, log));
        // Only the error of parsing the text has the line and column.
        if changed { serde_json::from_value(value) } else { Err(error) }
    })
}

/// Flags of a scheduler: the name in the specification and the name that the parser accepts.
const SCHEDULER_FLAGS: [(&str, &str); 2] =
    [("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"), ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN")];

/// Makes root the user of a process without one, and renames the flags of its scheduler to the names that the parser accepts. Returns
/// whether it changed anything.
fn normalize(process: &mut Map<String, Value>) -> bool {
    let has_no_user = process.get("user").is_none_or(Value::is_null);
    if has_no_user {
        process.insert("user".into(), json!({}));
    }
    let flags = process.get_mut("scheduler").and_then(|scheduler| scheduler.get_mut("flags"));
    let mut renamed = false;
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        let alias = SCHEDULER_FLAGS.iter().find(|(name, _)| flag.as_str() == Some(name));
        if let Some((_, name)) = alias {
            *flag = (*name).into();
            renamed = true;
        }
    }
    has_no_user || renamed
}
