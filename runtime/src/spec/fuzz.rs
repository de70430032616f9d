//! The fuzzing targets of specifications.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Process, Spec};

use super::bundle::Bundle;
use super::check::check_process;
use super::limits::Limits;
use super::parse::parse;
use super::sizing::{Size, changed_memory, changed_vcpus};
use super::{apparmor, block_io, capabilities, devices, guest, id_mappings, mounts, namespaces, resources, seccomp};
use crate::base::config::Config;
use crate::base::log::{Format, Log};

/// The most instructions of a filter (`BPF_MAXINSNS` of the kernel).
const MAX_INSTRUCTIONS: usize = 4096;

fn log() -> Log {
    Log::new(Some(Path::new("/dev/null")), Format::Json, false).expect("/dev/null can be opened")
}

/// The bundle with this `config.json`.
fn load(data: &[u8], log: &Log) -> Option<Bundle> {
    let file = rustix::fs::memfd_create("config.json", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
    let mut file = File::from(file);
    file.write_all(data).expect("memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Bundle::load(Path::new("/"), Some(&path), log).ok()
}

/// A `config.json`, up to the limits of the host and the specification of the guest.
pub(crate) fn config(data: &[u8]) {
    compiles(data);
}

/// Returns whether the configuration is valid and has a seccomp profile that is compiled.
fn compiles(data: &[u8]) -> bool {
    let log = log();
    let Some(mut bundle) = load(data, &log) else { return false };
    describe(&bundle);
    let config = Config::load(Some(Path::new("/dev/null")), true).expect("an empty file is valid");
    let before = bundle.spec.clone();
    bundle.normalize_deprecated(&log);
    let mounts = bundle.spec.mounts().iter().flatten();
    assert!(mounts.clone().all(|mount| mount.destination().is_absolute()));
    let _ = mounts.filter(|mount| mounts::is_bind(mount) && mounts::options(mount).count() > 0).count();
    if let Ok(size) = Size::of(&bundle.spec, &config) {
        let limits = Limits::of(&bundle.spec, size);
        assert!(limits.memory >> 20 > size.memory_mib && size.vcpus > 0);
        let _ = (limits.first_host_only_limit(), limits.block_io.cgroup_v2_settings(|_| true));
        let _ = limits.block_io.cgroup_v1_settings(|_| true);
        let _ = (changed_memory(&before, &bundle.spec), changed_vcpus(&before, &bundle.spec, size));
    }
    to_guest(bundle.spec, &log)
}

/// What commands read of a bundle.
fn describe(bundle: &Bundle) {
    let _ = (bundle.rootfs(), bundle.cgroups_path(), bundle.console_log(), bundle.has_terminal());
    bundle.program().expect("a valid specification has a process");
    let _ = (namespaces::existing(&bundle.spec).count(), namespaces::network_path(&bundle.spec));
}

/// Makes the specification of the guest, which is valid JSON of a specification. Returns whether it has a filter.
fn to_guest(mut spec: Spec, log: &Log) -> bool {
    guest::remove_host_settings(&mut spec);
    let _ = devices::select(&mut spec, log);
    if let Some(process) = spec.process_mut() {
        apparmor::remove_default(process, log);
        capabilities::remove_unsupported_ambient(process, log);
    }
    block_io::remove_host_limits(&mut spec);
    id_mappings::map_to_identity(&mut spec);
    let filter = guest::take_seccomp(&mut spec).and_then(|profile| seccomp::compile(&profile).ok());
    filter.iter().for_each(|filter| check_filter(&filter.program));
    let text = serde_json::to_vec(&spec).expect("a specification is written");
    serde_json::from_slice::<Spec>(&text).expect("and read again");
    filter.is_some()
}

/// A filter is a program that the kernel accepts: every jump leads forward to an instruction, and the last instruction returns.
fn check_filter(program: &[u64]) {
    const RETURN: u64 = 0x06;
    const JUMP_ALWAYS: u64 = 0x05;
    let code = |instruction: u64| instruction >> 48;
    assert!(program.len() <= MAX_INSTRUCTIONS);
    assert_eq!(program.last().map(|last| code(*last) & 0x07), Some(RETURN));
    for (at, instruction) in program.iter().enumerate() {
        let far = match code(*instruction) & 0x07 {
            JUMP_ALWAYS if code(*instruction) == JUMP_ALWAYS => instruction & 0xffff_ffff,
            JUMP_ALWAYS => (instruction >> 40 & 0xff).max(instruction >> 32 & 0xff),
            RETURN => continue,
            _ => 0,
        };
        assert!(at as u64 + 1 + far < program.len() as u64, "instruction {at} leads behind the end");
    }
}

/// The process of `exec`, on the first line, and a change of limits by `update`, on the second.
pub(crate) fn changes(data: &[u8]) {
    merges(data);
}

/// Returns whether the process and the change are valid.
fn merges(data: &[u8]) -> bool {
    let log = log();
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let mut is_process_valid = false;
    if let Ok(mut process) = parse::<Process>(lines.next().unwrap_or_default(), "", &log) {
        is_process_valid = check_process(&process).is_ok();
        apparmor::remove_default(&mut process, &log);
        capabilities::add(&mut process, &["CAP_SYS_ADMIN".into(), "cap_unknown".into()], &log);
        capabilities::remove_unsupported_ambient(&mut process, &log);
    }
    let before: Option<LinuxResources> = serde_json::from_slice(lines.next().unwrap_or_default()).ok();
    let Ok(change) = serde_json::from_slice(lines.next().unwrap_or_default()) else { return false };
    let Ok(mut merged) = resources::merge(before.as_ref(), change) else { return false };
    resources::remove_kernel_memory(&mut merged, &log);
    let with = |resources: LinuxResources| {
        let linux = serde_json::json!({"resources": resources});
        serde_json::from_value::<Spec>(serde_json::json!({"ociVersion": "1.0.2", "linux": linux}))
    };
    let (before, after) = (with(before.unwrap_or_default()), with(merged));
    let (before, after) = (before.expect("limits are written"), after.expect("limits are written"));
    let machine = Size { memory_mib: 256, vcpus: 1 };
    let _ = (changed_memory(&before, &after), changed_vcpus(&before, &after, machine));
    let _ = Limits::of(&after, machine);
    is_process_valid
}

#[cfg(test)]
mod tests {
    use agent::fuzz::committed;

    use super::*;

    #[test]
    fn committed_specifications_are_valid() {
        for (name, has_filter) in [("full", true), ("denylist", true), ("starter", false)] {
            assert_eq!(compiles(&committed("config", name)), has_filter, "{name}");
            assert!(load(&committed("config", name), &log()).is_some(), "{name}");
        }
        for (name, is_valid) in [("both", true), ("none", true), ("wrong", false)] {
            assert_eq!(merges(&committed("changes", name)), is_valid, "{name}");
        }
    }
}
