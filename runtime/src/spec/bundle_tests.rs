use serde_json::{Value, json};

use super::*;
use crate::base::log::Format;
use crate::spec::STARTER;

/// Loads a bundle with the specification of `runc spec`, changed by `edit`.
fn load(edit: impl FnOnce(&mut Value)) -> Result<Bundle, BundleError> {
    let mut spec: Value = serde_json::from_str(STARTER).unwrap();
    edit(&mut spec);
    load_text(&spec.to_string())
}

fn load_text(text: &str) -> Result<Bundle, BundleError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), text).unwrap();
    Bundle::load(dir.path(), None, &log())
}

fn log() -> Log {
    Log::new(None, Format::Text, false).unwrap()
}

fn message(edit: impl FnOnce(&mut Value)) -> String {
    load(edit).unwrap_err().to_string()
}

#[test]
fn the_starter_specification_is_valid() {
    let bundle = load(|_| ()).unwrap();
    assert!(bundle.has_terminal());
    assert_eq!(bundle.rootfs(), bundle.dir.join("rootfs"));
    assert!(bundle.dir.is_absolute());
}

#[test]
fn a_missing_directory_and_a_missing_specification_are_different_errors() {
    assert!(matches!(Bundle::load(Path::new("/nonexistent"), None, &log()), Err(BundleError::NoBundle { .. })));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Bundle::load(dir.path(), None, &log()), Err(BundleError::NoConfig(_))));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Bundle::load(&file, None, &log()), Err(BundleError::NoBundle { .. })));
}

#[test]
fn the_error_for_invalid_json_has_its_line() {
    let error = load_text("{\"ociVersion\": \"1.0.2\",\n  \"process\": 7}").unwrap_err();
    let BundleError::Json { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.line(), 2);
    assert!(load_text("").is_err() && load_text("{").is_err());
    assert!(matches!(load_text(" []"), Err(BundleError::NoObject(_))));
}

#[test]
fn versions_other_than_1_x_are_refused() {
    for version in ["1.0.0", "1.0.2-dev", "1.2.0", "1.3.0+x"] {
        load(|spec| spec["ociVersion"] = json!(version)).unwrap();
    }
    for version in ["", "9.0.0", "0.9.0", "1", "1.0", "x", "1.x.0", "1.0.0.0"] {
        let error = load(|spec| spec["ociVersion"] = json!(version)).unwrap_err();
        assert!(matches!(error, BundleError::Version(_)), "{version}: {error}");
    }
}

#[test]
fn a_process_without_program_or_absolute_directory_is_refused() {
    assert_eq!(message(|spec| spec["process"] = Value::Null), "process property must not be empty");
    assert_eq!(message(|spec| spec["process"]["args"] = json!([])), "args must not be empty");
    assert_eq!(message(|spec| spec["process"]["args"] = json!(["a\0"])), "process.args holds a NUL character");
    assert_eq!(message(|spec| spec["process"]["env"] = json!(["a\0"])), "process.env holds a NUL character");
    for entry in ["", "FOO", "=x"] {
        let expected = format!("invalid environment variable: \"{entry}\"");
        assert_eq!(message(|spec| spec["process"]["env"] = json!(["A=", entry])), expected);
    }
    assert_eq!(message(|spec| spec["process"]["cwd"] = json!("")), "Cwd property must not be empty");
    assert_eq!(message(|spec| spec["process"]["cwd"] = json!("home")), "Cwd must be an absolute path");
}

#[test]
fn a_missing_root_is_refused() {
    assert_eq!(message(|spec| spec["root"] = Value::Null), "root must be specified");
}

#[test]
fn a_relative_mount_destination_becomes_absolute_with_a_warning() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let log = Log::new(Some(file.path()), Format::Text, false).unwrap();
    let mut bundle = load(|spec| spec["mounts"][0]["destination"] = json!("proc")).unwrap();
    bundle.normalize_deprecated(&log);
    let mounts = bundle.spec.mounts().as_ref().unwrap();
    assert_eq!((mounts[0].destination(), mounts[1].destination()), (&"/proc".into(), &"/dev".into()));
    let logged = fs::read_to_string(file.path()).unwrap();
    assert!(logged.contains("mount destination proc is not absolute") && logged.lines().count() == 1, "{logged}");
}

#[test]
fn a_process_without_user_runs_as_root() {
    let user = |edit: fn(&mut Value)| load(edit).unwrap().process().unwrap().user().clone();
    for edit in [
        |spec: &mut Value| drop(spec["process"].as_object_mut().unwrap().remove("user")),
        |spec: &mut Value| {
            spec["process"]["user"] = Value::Null;
        },
    ] {
        assert_eq!((user(edit).uid(), user(edit).gid()), (0, 0));
    }
    assert_eq!(user(|spec| spec["process"]["user"] = json!({"uid": 7})).uid(), 7);
    let error = load(|spec| spec["process"]["user"] = json!(7)).unwrap_err();
    assert!(matches!(error, BundleError::Json { .. }), "{error}");
}

#[test]
fn scheduler_flags_have_the_names_of_the_specification() {
    let flags = |names: Value| {
        let scheduler = json!({"policy": "SCHED_DEADLINE", "flags": names});
        load(|spec| spec["process"]["scheduler"] = scheduler)
            .map(|bundle| bundle.process().unwrap().scheduler().as_ref().unwrap().flags().clone().unwrap())
    };
    use oci_spec::runtime::LinuxSchedulerFlag::{SchedFlagDLOverrun, SchedFlagReclaim, SchedResetOnFork};
    let named = json!(["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"]);
    assert_eq!(flags(named).unwrap(), [SchedResetOnFork, SchedFlagReclaim, SchedFlagDLOverrun]);
    assert!(flags(json!(["SCHED_FLAG_NONSENSE"])).is_err());
}

#[test]
fn namespaces_of_the_host_are_refused_by_name() {
    let without = |name: &'static str| {
        move |spec: &mut Value| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != name);
        }
    };
    assert!(message(without("network")).starts_with("the host's net namespace is refused"));
    assert!(message(without("pid")).starts_with("the host's pid namespace is refused"));
    assert_eq!(message(without("uts")), "unable to set hostname without a private UTS namespace");
    load(|spec| spec["linux"]["namespaces"][1]["path"] = json!("/proc/1/ns/net")).unwrap();
}

#[test]
fn hooks_with_relative_path_or_zero_timeout_are_refused() {
    let hooks = |hook: Value| message(|spec| spec["hooks"] = json!({"poststop": [{"path": "/bin/true"}, hook]}));
    assert_eq!(hooks(json!({"path": "bin/true"})), "hooks.poststop: path \"bin/true\" is not absolute");
    let zero_timeout = json!({"path": "/bin/true", "timeout": 0});
    assert_eq!(hooks(zero_timeout.clone()), "hooks.poststop: timeout is not greater than zero");
    assert!(
        message(|spec| spec["hooks"] = json!({"startContainer": [zero_timeout]})).starts_with("hooks.startContainer")
    );
    load(|spec| spec["hooks"] = json!({"prestart": [{"path": "/bin/true", "timeout": 1}]})).unwrap();
}

#[test]
fn the_specification_may_be_outside_of_the_bundle() {
    let (dir, file) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    fs::write(file.path(), STARTER).unwrap();
    assert_eq!(Bundle::load(dir.path(), Some(file.path()), &log()).unwrap().dir, dir.path().canonicalize().unwrap());
    let error = Bundle::load(dir.path(), Some(Path::new("/nonexistent.json")), &log()).unwrap_err();
    assert_eq!(error.to_string(), "JSON specification file /nonexistent.json not found");
}
