//! Capabilities of a process. Those that it cannot get are removed with a warning, as the specification requires.

use std::collections::BTreeSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};
use serde_json::{Map, Value};

use crate::base::log::Log;

/// Removes unknown capabilities from a process before it is parsed. Returns whether there were any.
pub(crate) fn remove_unknown(process: &mut Map<String, Value>, log: &Log) -> bool {
    let mut unknown = BTreeSet::new();
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(Map::values_mut).filter_map(Value::as_array_mut) {
        set.retain(|name| {
            let unknown_name = name.as_str().filter(|name| parse(name).is_none());
            unknown.extend(unknown_name.map(str::to_owned));
            unknown_name.is_none()
        });
    }
    warn_unknown(&unknown, log);
    !unknown.is_empty()
}

fn parse(name: &str) -> Option<Capability> {
    serde_json::from_value(name.into()).ok()
}

fn warn_unknown(unknown: &BTreeSet<String>, log: &Log) {
    if !unknown.is_empty() {
        let names = unknown.iter().map(String::as_str).collect::<Vec<_>>();
        log.warn(&format!("ignoring unknown or unavailable capabilities: [{}]", names.join(" ")));
    }
}

/// Removes ambient capabilities that are not both permitted and inheritable: the kernel would refuse them. There is no warning for
/// root, which gets all its permitted capabilities with every program anyway.
pub(crate) fn remove_unsupported_ambient(process: &mut Process, log: &Log) {
    let Some(mut sets) = process.capabilities().clone() else { return };
    let has = |set: &Option<Capabilities>, one: &Capability| set.as_ref().is_some_and(|set| set.contains(one));
    let (supported, unsupported): (Capabilities, Capabilities) = sets
        .ambient()
        .iter()
        .flatten()
        .copied()
        .partition(|one| has(sets.permitted(), one) && has(sets.inheritable(), one));
    if unsupported.is_empty() {
        return;
    }
    if process.user().uid() != 0 {
        let names: BTreeSet<_> = unsupported.iter().map(|one| format!("CAP_{one}")).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(" ");
        log.warn(&format!("can't raise ambient capabilities that are not permitted and inheritable: [{names}]"));
    }
    sets.set_ambient(Some(supported));
    process.set_capabilities(Some(sets));
}

/// Adds the capabilities `names` to the same sets as runc: bounding, effective and permitted, and ambient if the process has an
/// inheritable set. Unknown names cause a warning.
pub(crate) fn add(process: &mut Process, names: &[String], log: &Log) {
    let added: Capabilities = names.iter().filter_map(|name| parse(name)).collect();
    warn_unknown(&names.iter().filter(|name| parse(name).is_none()).cloned().collect(), log);
    let mut sets = process.capabilities().clone().unwrap_or_else(no_capabilities);
    let union = |set: &Option<Capabilities>| Some(set.iter().flatten().chain(&added).copied().collect());
    let (bounding, effective, permitted) = (union(sets.bounding()), union(sets.effective()), union(sets.permitted()));
    if sets.inheritable().is_some() {
        let ambient = union(sets.ambient());
        sets.set_ambient(ambient);
    }
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(sets));
}

/// Capability sets that are all absent; the default of the type has some.
fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(None).set_effective(None).set_inheritable(None).set_permitted(None).set_ambient(None);
    none
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::NamedTempFile;

    use super::*;
    use crate::base::log::Format;

    /// Parses a process with the capability sets `sets` and applies `change`. Returns its sets and the log.
    fn process(sets: &Value, change: impl FnOnce(&mut Process, &Log)) -> (LinuxCapabilities, String) {
        let file = NamedTempFile::new().unwrap();
        let log = Log::new(Some(file.path()), Format::Text, false).unwrap();
        let mut process = json!({"cwd": "/", "user": {}, "capabilities": sets});
        remove_unknown(process.as_object_mut().unwrap(), &log);
        let mut process: Process = serde_json::from_value(process).unwrap();
        change(&mut process, &log);
        (process.capabilities().clone().unwrap(), std::fs::read_to_string(file.path()).unwrap())
    }

    fn names(set: &Option<Capabilities>) -> Vec<String> {
        let mut names: Vec<_> = set.iter().flatten().map(|one| format!("CAP_{one}")).collect();
        names.sort();
        names
    }

    #[test]
    fn unknown_capabilities_are_removed_with_a_warning() {
        let (sets, logged) =
            process(&json!({"bounding": ["CAP_KILL", "CAP_NEW"], "permitted": ["CAP_NEW", "CAP_OLD"]}), |_, _| ());
        assert_eq!((names(sets.bounding()), names(sets.permitted())), (vec!["CAP_KILL".to_owned()], vec![]));
        assert!(logged.contains("capabilities: [CAP_NEW CAP_OLD]") && logged.lines().count() == 1, "{logged}");
    }

    #[test]
    fn unsupported_ambient_capabilities_are_removed_with_a_warning_unless_for_root() {
        let given = json!({"permitted": ["CAP_KILL", "CAP_CHOWN", "CAP_SYSLOG"], "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_SYSLOG", "CAP_KILL", "CAP_CHOWN"]});
        let for_user = |uid| {
            process(&given, |process, log| {
                process.user_mut().set_uid(uid);
                remove_unsupported_ambient(process, log);
            })
        };
        let (sets, logged) = for_user(1000);
        assert_eq!(names(sets.ambient()), ["CAP_KILL"]);
        assert!(logged.contains(": [CAP_CHOWN CAP_SYSLOG]") && logged.lines().count() == 1, "{logged}");
        let (sets, logged) = for_user(0);
        assert_eq!((names(sets.ambient()), logged.as_str()), (vec!["CAP_KILL".to_owned()], ""));
    }

    #[test]
    fn an_added_capability_is_in_the_same_sets_as_with_runc() {
        let add = |process: &mut Process, log: &Log| add(process, &["CAP_KILL".into(), "CAP_NEW".into()], log);
        let (sets, logged) = process(&json!({"bounding": ["CAP_CHOWN"]}), add);
        assert_eq!(names(sets.bounding()), ["CAP_CHOWN", "CAP_KILL"]);
        assert_eq!(
            (names(sets.effective()), names(sets.permitted())),
            (vec!["CAP_KILL".into()], vec!["CAP_KILL".into()])
        );
        assert!(sets.inheritable().is_none() && names(sets.ambient()).is_empty());
        assert!(logged.contains("[CAP_NEW]"), "{logged}");
        let (sets, _) = process(&json!({"inheritable": ["CAP_KILL"], "ambient": []}), add);
        assert_eq!(names(sets.ambient()), ["CAP_KILL"]);
    }
}
