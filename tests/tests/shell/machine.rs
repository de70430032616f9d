//! The virtual machine around the container.

use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt};

const SCRIPT: &str = "echo cpus=$(nproc); echo kib=$(awk '/MemTotal/ {print $2}' /proc/meminfo); \
    for i in 1 2 3 4; do (i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done) & done; wait; echo worked=yes";

fn shape(runtime: &Runtime, memory: &str, vcpus: &str) -> (u64, u64) {
    let bundle = Bundle::script(SCRIPT)
        .with("/annotations/dev.vmrt.memory", json!(memory))
        .with("/annotations/dev.vmrt.vcpus", json!(vcpus));
    let done = runtime.run(&bundle).ok();
    assert_eq!(done.value("worked"), "yes");
    (done.value("cpus").parse().unwrap(), done.value("kib").parse().unwrap())
}

#[test]
fn the_machine_has_the_configured_vcpus_and_memory() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    for (memory, mib, vcpus) in [("64M", 64, 1), ("512M", 512, 2), ("2G", 2048, 4)] {
        let (cpus, kib) = shape(&runtime, memory, &vcpus.to_string());
        assert_eq!(cpus, vcpus, "{memory}");
        assert!((mib * 1024 * 6 / 10..=mib * 1024).contains(&kib), "{memory}: {kib} KiB");
    }
}

#[test]
fn check_reports_that_kvm_is_usable() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let done = runtime.call(&["check"]).ok();
    let report = done.text();
    assert!(report.contains("usable"), "{report}");
    let layers: Vec<_> = report.lines().filter(|line| line.starts_with("jail")).collect();
    assert_eq!(layers.len(), 9, "{report}");
    assert!(layers.iter().all(|layer| layer.ends_with(": yes")), "{report}");
}

#[test]
fn the_timeline_lists_the_stages_of_a_start() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["true"]);
    let done = runtime.call(&["run", "--timeline", "--bundle", bundle.path().to_str().unwrap(), "timeline"]).ok();
    let table = done.message();
    let rows = table.lines().skip_while(|line| !line.contains("stage")).skip(1);
    let stages: Vec<(f64, &str)> = rows
        .map(|row| {
            let mut columns = row.trim().splitn(3, ' ');
            let at = columns.next().unwrap().parse().expect("milliseconds since the command began");
            (at, row.trim_start_matches(|char: char| char == ' ' || char == '.' || char.is_ascii_digit()))
        })
        .collect();
    assert!(stages.is_sorted_by(|(before, _), (after, _)| before <= after), "{table}");
    let mut names = stages.iter().map(|(_, name)| *name);
    for wanted in
        ["vmrt: VMM spawned", "vCPUs started", "agent ready", "container created", "vmrt: started", "vmrt: deleted"]
    {
        assert!(names.any(|name| name == wanted), "no {wanted:?} in its place in\n{table}");
    }
}

#[test]
fn errors_are_logged_as_json() {
    let runtime = Runtime::new();
    let log = runtime.root().with_extension("log");
    let done = runtime.call(&["--log", log.to_str().unwrap(), "--log-format", "json", "state", "nobody"]);
    assert_ne!(done.code, 0);
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let error = entries.iter().find(|entry| entry["level"] == "error").expect("an error in the log");
    assert!(error["msg"].as_str().unwrap().contains("does not exist"), "{error}");
    assert!(error["time"].is_string());
}
