//! Devices of a container, `linux.devices`.
//!
//! A guest has the devices that every kernel has, and its own loop devices. The node of another device of the host would exist in the
//! guest and not work, so vmrt refuses such a device. If the host does not have the device either, its node works in neither, and vmrt
//! accepts it.

use std::iter;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use thiserror::Error;

use crate::base::log::Log;
use crate::spec::device_numbers::{is_guest_device, is_loop};
use crate::spec::mounts::is_bind;

/// Directory in which the host's kernel lists its devices by their numbers.
const SYS_DEV: &str = "/sys/dev";

/// Number of loop devices of a privileged container: as many as most kernels create by default.
const LOOP_DEVICE_COUNT: i64 = 8;

/// A device that a container cannot have.
#[derive(Debug, Error)]
#[error("linux.devices: {} ({kind} {major}:{minor}) is a device of the host, which the guest does not have", path.display())]
pub(crate) struct DeviceError {
    path: PathBuf,
    kind: &'static str,
    major: i64,
    minor: i64,
}

/// Selects the devices that the guest's specification keeps.
///
/// Devices that only the host has are refused. Engines list every device of the host for a privileged container, which may use all
/// devices: there they are removed with a warning. A privileged container also gets loop devices, even if the host has none.
pub(crate) fn select(spec: &mut Spec, log: &Log) -> Result<(), DeviceError> {
    let is_dev_bound =
        spec.mounts().iter().flatten().any(|mount| mount.destination() == Path::new("/dev") && is_bind(mount));
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let rules = linux.resources_mut().as_mut().and_then(|resources| resources.devices_mut().as_mut());
    rules.into_iter().flatten().for_each(|rule| remove_unknown_access(rule, log));
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
    let privileged = may_use_all(rules.unwrap_or_default());
    let devices = linux.devices().as_deref().unwrap_or_default();
    if is_dev_bound || devices.is_empty() {
        // A bind mount covers `/dev`: no nodes are created in it.
        return Ok(());
    }
    let (host_only, mut selected): (Vec<_>, Vec<_>) =
        devices.iter().cloned().partition(|device| is_host_only(device, Path::new(SYS_DEV)));
    match host_only.first() {
        Some(device) if !privileged => return Err(refusal(device)),
        Some(_) => {
            let paths: Vec<_> = host_only.iter().map(|device| device.path().display().to_string()).collect();
            log.warn(&format!("devices of the host that a guest has not are left out: {}", paths.join(", ")));
        }
        None => {}
    }
    if privileged {
        add_loop_devices(&mut selected);
    }
    linux.set_devices(Some(selected));
    Ok(())
}

/// Adds the loop devices that are missing, and `/dev/loop-control`.
fn add_loop_devices(devices: &mut Vec<LinuxDevice>) {
    let control = ("/dev/loop-control".to_owned(), LinuxDeviceType::C, 10, 237, 0o600_u32);
    let loops =
        (0..LOOP_DEVICE_COUNT).map(|number| (format!("/dev/loop{number}"), LinuxDeviceType::B, 7, number, 0o660));
    for (path, kind, major, minor, mode) in iter::once(control).chain(loops) {
        if devices.iter().all(|device| device.path() != Path::new(&path)) {
            let device = LinuxDeviceBuilder::default().path(path).typ(kind).major(major).minor(minor);
            devices.push(device.file_mode(mode).build().expect("no field of a device is missing"));
        }
    }
}

/// Removes letters that are no kind of access. runc ignores them; vmrt also warns.
fn remove_unknown_access(rule: &mut LinuxDeviceCgroup, log: &Log) {
    let Some(access) = rule.access() else { return };
    let known: String = access.chars().filter(|letter| matches!(letter, 'r' | 'w' | 'm')).collect();
    if known != *access {
        log.warn(&format!("linux.resources.devices: access {access:?} is taken for {known:?}"));
        rule.set_access(Some(known));
    }
}

/// Whether the last rule that matches all devices allows access.
fn may_use_all(rules: &[LinuxDeviceCgroup]) -> bool {
    let is_any = |number: Option<i64>| number.is_none_or(|number| number < 0);
    let is_for_all = |rule: &&LinuxDeviceCgroup| {
        matches!(rule.typ(), None | Some(LinuxDeviceType::A)) && is_any(rule.major()) && is_any(rule.minor())
    };
    rules.iter().rfind(is_for_all).is_some_and(LinuxDeviceCgroup::allow)
}

/// Whether the host has the device, as `sys_dev` lists it, and a guest does not.
fn is_host_only(device: &LinuxDevice, sys_dev: &Path) -> bool {
    let (major, minor) = (device.major(), device.minor());
    let (unsigned_major, unsigned_minor) = (u64::try_from(major), u64::try_from(minor));
    let is_loop = unsigned_major.is_ok_and(is_loop);
    let is_in_guest = unsigned_major.is_ok_and(|major| unsigned_minor.is_ok_and(|minor| is_guest_device(major, minor)));
    let directory = match device.typ() {
        LinuxDeviceType::B if !is_loop => "block",
        LinuxDeviceType::C | LinuxDeviceType::U if !is_in_guest => "char",
        _ => return false,
    };
    sys_dev.join(directory).join(format!("{major}:{minor}")).exists()
}

fn refusal(device: &LinuxDevice) -> DeviceError {
    let kind = if device.typ() == LinuxDeviceType::B { "block" } else { "character" };
    DeviceError { path: device.path().clone(), kind, major: device.major(), minor: device.minor() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    fn device(kind: &str, major: i64, minor: i64) -> LinuxDevice {
        serde_json::from_value(json!({"path": "/dev/x", "type": kind, "major": major, "minor": minor})).unwrap()
    }

    #[test]
    fn devices_of_every_kernel_and_missing_devices_are_not_host_only() {
        let sys_dev = tempfile::tempdir().unwrap();
        for name in ["char/1:3", "char/5:2", "char/10:232", "char/10:237", "block/8:0", "block/7:0"] {
            fs::create_dir_all(sys_dev.path().join(name)).unwrap();
        }
        let host_only = |kind, major, minor| is_host_only(&device(kind, major, minor), sys_dev.path());
        assert!(host_only("c", 10, 232) && host_only("u", 10, 232) && host_only("b", 8, 0));
        for (kind, major, minor) in
            [("c", 1, 3), ("c", 5, 2), ("c", 10, 237), ("b", 7, 0), ("b", 1, 3), ("c", 8, 0), ("b", 9, 0), ("p", 0, 0)]
        {
            assert!(!host_only(kind, major, minor), "{kind} {major}:{minor}");
        }
        assert!(refusal(&device("b", 8, 0)).to_string().contains("/dev/x (block 8:0) is a device of the host"));
    }

    #[test]
    fn missing_loop_devices_are_added() {
        let mut devices = vec![device("c", 1, 3)];
        devices[0].set_path("/dev/loop3".into());
        add_loop_devices(&mut devices);
        let summarize =
            |device: &LinuxDevice| format!("{} {}:{}", device.path().display(), device.major(), device.minor());
        let summary: Vec<_> = devices.iter().map(summarize).collect();
        assert_eq!(
            (summary.len(), summary[0].as_str(), summary[1].as_str()),
            (9, "/dev/loop3 1:3", "/dev/loop-control 10:237")
        );
        assert_eq!((summary[5].as_str(), summary[8].as_str()), ("/dev/loop4 7:4", "/dev/loop7 7:7"));
    }

    #[test]
    fn unknown_kinds_of_access_are_removed() {
        let remaining = |access: &str| {
            let mut rule = serde_json::from_value(json!({"allow": false, "access": access})).unwrap();
            remove_unknown_access(&mut rule, &Log::new(None, crate::base::log::Format::Text, false).unwrap());
            rule.access().clone().unwrap()
        };
        assert_eq!([remaining("rwa"), remaining("m"), remaining("")], ["rw", "m", ""]);
    }

    #[test]
    fn the_last_rule_for_all_devices_decides() {
        let may_use_all = |rules: Value| super::may_use_all(&serde_json::from_value::<Vec<_>>(rules).unwrap());
        let all = |allow: bool| json!({"allow": allow, "access": "rwm"});
        assert!(
            may_use_all(json!([all(true)]))
                && may_use_all(json!([all(false), {"allow": true, "type": "a", "major": -1, "minor": -1}]))
        );
        assert!(!may_use_all(json!([])) && !may_use_all(json!([all(true), all(false)])));
        assert!(!may_use_all(json!([all(false), {"allow": true, "type": "c", "access": "m"}])));
    }
}
