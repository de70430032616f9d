//! Capabilities that a process cannot get. As the specification wants it, they are told of and left out.

use std::collections::BTreeSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};
use serde_json::{Map, Value};

use crate::base::log::Log;

/// Takes capabilities that nobody knows off a process that was not parsed yet; whether there were any.
pub(crate) fn remove_unknown(process: &mut Map<String, Value>, log: &Log) -> bool {
    let mut unknown = BTreeSet::new();
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(Map::values_mut).filter_map(Value::as_array_mut) {
        set.retain(|name| {
            let odd = name.as_str().filter(|name| known(name).is_none());
            unknown.extend(odd.map(str::to_owned));
            odd.is_none()
        });
    }
    warn(&unknown, log);
    !unknown.is_empty()
}

fn known(name: &str) -> Option<Capability> {
    serde_json::from_value(name.into()).ok()
}

fn warn(unknown: &BTreeSet<String>, log: &Log) {
    if !unknown.is_empty() {
        let names = unknown.iter().map(String::as_str).collect::<Vec<_>>();
        log.warn(&format!("ignoring unknown or unavailable capabilities: [{}]", names.join(" ")));
    }
}

/// Takes ambient capabilities off a process that are not both permitted and inheritable: the kernel would not have them. That is told
/// where they are lost: root gets what it is permitted with every program anyway.
pub(crate) fn remove_unsupported_ambient(process: &mut Process, log: &Log) {
    let Some(mut sets) = process.capabilities().clone() else { return };
    let has = |set: &Option<Capabilities>, one: &Capability| set.as_ref().is_some_and(|set| set.contains(one));
    let (founded, unfounded): (Capabilities, Capabilities) = sets
        .ambient()
        .iter()
        .flatten()
        .copied()
        .partition(|one| has(sets.permitted(), one) && has(sets.inheritable(), one));
    if unfounded.is_empty() {
        return;
    }
    if process.user().uid() != 0 {
        let names: BTreeSet<_> = unfounded.iter().map(|one| format!("CAP_{one}")).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(" ");
        log.warn(&format!("can't raise ambient capabilities that are not permitted and inheritable: [{names}]"));
    }
    sets.set_ambient(Some(founded));
    process.set_capabilities(Some(sets));
}

/// Adds to the sets that runc adds to; to the ambient one only where the process has inheritable ones to found them on.
pub(crate) fn add(process: &mut Process, names: &[String], log: &Log) {
    let added: Capabilities = names.iter().filter_map(|name| known(name)).collect();
    warn(&names.iter().filter(|name| known(name).is_none()).cloned().collect(), log);
    let mut sets = process.capabilities().clone().unwrap_or_else(none);
    let join = |set: &Option<Capabilities>| Some(set.iter().flatten().chain(&added).copied().collect());
    let (bounding, effective, permitted) = (join(sets.bounding()), join(sets.effective()), join(sets.permitted()));
    if sets.inheritable().is_some() {
        let ambient = join(sets.ambient());
        sets.set_ambient(ambient);
    }
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(sets));
}

fn none() -> LinuxCapabilities {
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

    /// A process with these sets, as it is after `change`, and what was told.
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
    fn those_nobody_knows_are_left_out_and_told() {
        let (sets, said) =
            process(&json!({"bounding": ["CAP_KILL", "CAP_NEW"], "permitted": ["CAP_NEW", "CAP_OLD"]}), |_, _| ());
        assert_eq!((names(sets.bounding()), names(sets.permitted())), (vec!["CAP_KILL".to_owned()], vec![]));
        assert!(said.contains("capabilities: [CAP_NEW CAP_OLD]") && said.lines().count() == 1, "{said}");
    }

    #[test]
    fn those_without_foundation_are_left_out_and_told_where_they_are_lost() {
        let given = json!({"permitted": ["CAP_KILL", "CAP_CHOWN", "CAP_SYSLOG"], "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_SYSLOG", "CAP_KILL", "CAP_CHOWN"]});
        let of_user = |uid| {
            process(&given, |process, log| {
                process.user_mut().set_uid(uid);
                remove_unsupported_ambient(process, log);
            })
        };
        let (sets, said) = of_user(1000);
        assert_eq!(names(sets.ambient()), ["CAP_KILL"]);
        assert!(said.contains(": [CAP_CHOWN CAP_SYSLOG]") && said.lines().count() == 1, "{said}");
        let (sets, said) = of_user(0);
        assert_eq!((names(sets.ambient()), said.as_str()), (vec!["CAP_KILL".to_owned()], ""));
    }

    #[test]
    fn one_is_added_where_runc_adds_it() {
        let add = |process: &mut Process, log: &Log| add(process, &["CAP_KILL".into(), "CAP_NEW".into()], log);
        let (sets, said) = process(&json!({"bounding": ["CAP_CHOWN"]}), add);
        assert_eq!(names(sets.bounding()), ["CAP_CHOWN", "CAP_KILL"]);
        assert_eq!(
            (names(sets.effective()), names(sets.permitted())),
            (vec!["CAP_KILL".into()], vec!["CAP_KILL".into()])
        );
        assert!(sets.inheritable().is_none() && names(sets.ambient()).is_empty());
        assert!(said.contains("[CAP_NEW]"), "{said}");
        let (sets, _) = process(&json!({"inheritable": ["CAP_KILL"], "ambient": []}), add);
        assert_eq!(names(sets.ambient()), ["CAP_KILL"]);
    }
}
