//! `linux.devices`: which of them a container can have.
//!
//! A guest has the devices that every kernel has, and its own loop devices. A node of another one would be there and not work, which
//! nobody could tell from a fault; unless nobody has such a device, so that its node is as good in the guest as on the host.

use std::iter;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use thiserror::Error;

use crate::base::log::Log;
use crate::spec::device_numbers::{is_guest_device, is_loop};
use crate::spec::mounts::is_bind;

/// Where the host's kernel lists its devices by their numbers.
const LISTS: &str = "/sys/dev";

/// How many loop devices a privileged container finds at least: as many as kernels usually have from the start.
const LOOP_DEVICES: i64 = 8;

/// A device that a container cannot have.
#[derive(Debug, Error)]
#[error("linux.devices: {} ({kind} {major}:{minor}) is a device of the host, which the guest's kernel has not", path.display())]
pub(crate) struct DeviceError {
    path: PathBuf,
    kind: &'static str,
    major: i64,
    minor: i64,
}

/// Refuses devices that only the host has. Engines give a privileged container, which may use all there are, every one of the
/// host's unasked: there they are left out, which is told, and loop devices are among those it has, whether the host has any or not.
pub(crate) fn select(spec: &mut Spec, log: &Log) -> Result<(), DeviceError> {
    let bound = spec.mounts().iter().flatten().any(|mount| mount.destination() == Path::new("/dev") && is_bind(mount));
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let rules = linux.resources_mut().as_mut().and_then(|resources| resources.devices_mut().as_mut());
    rules.into_iter().flatten().for_each(|rule| remove_unknown_access(rule, log));
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
    let privileged = may_use_all(rules.unwrap_or_default());
    let given = linux.devices().as_deref().unwrap_or_default();
    if bound || given.is_empty() {
        // Nothing is made in a directory that is somebody else's.
        return Ok(());
    }
    let (foreign, mut own): (Vec<_>, Vec<_>) =
        given.iter().cloned().partition(|device| is_foreign(device, Path::new(LISTS)));
    match foreign.first() {
        Some(device) if !privileged => return Err(refusal(device)),
        Some(_) => {
            let paths: Vec<_> = foreign.iter().map(|device| device.path().display().to_string()).collect();
            log.warn(&format!("devices of the host that a guest has not are left out: {}", paths.join(", ")));
        }
        None => {}
    }
    if privileged {
        add_loop_devices(&mut own);
    }
    linux.set_devices(Some(own));
    Ok(())
}

/// Those that are not there yet, and what makes more of them.
fn add_loop_devices(devices: &mut Vec<LinuxDevice>) {
    let control = ("/dev/loop-control".to_owned(), LinuxDeviceType::C, 10, 237, 0o600_u32);
    let loops = (0..LOOP_DEVICES).map(|number| (format!("/dev/loop{number}"), LinuxDeviceType::B, 7, number, 0o660));
    for (path, kind, major, minor, mode) in iter::once(control).chain(loops) {
        if devices.iter().all(|device| device.path() != Path::new(&path)) {
            let device = LinuxDeviceBuilder::default().path(path).typ(kind).major(major).minor(minor);
            devices.push(device.file_mode(mode).build().expect("no field of a device is missing"));
        }
    }
}

/// As in runc, letters that are no kind of access mean nothing; here, that is told.
fn remove_unknown_access(rule: &mut LinuxDeviceCgroup, log: &Log) {
    let Some(given) = rule.access() else { return };
    let known: String = given.chars().filter(|letter| matches!(letter, 'r' | 'w' | 'm')).collect();
    if known != *given {
        log.warn(&format!("linux.resources.devices: access {given:?} is taken for {known:?}"));
        rule.set_access(Some(known));
    }
}

/// Whether the last rule for all devices allows them.
fn may_use_all(rules: &[LinuxDeviceCgroup]) -> bool {
    let number = |number: Option<i64>| number.is_none_or(|number| number < 0);
    let is_for_all = |rule: &&LinuxDeviceCgroup| {
        matches!(rule.typ(), None | Some(LinuxDeviceType::A)) && number(rule.major()) && number(rule.minor())
    };
    rules.iter().rfind(is_for_all).is_some_and(LinuxDeviceCgroup::allow)
}

/// Whether the host has the device, by its `lists`, and a guest has not.
fn is_foreign(device: &LinuxDevice, lists: &Path) -> bool {
    let (major, minor) = (device.major(), device.minor());
    let (own_major, own_minor) = (u64::try_from(major), u64::try_from(minor));
    let is_loop = own_major.is_ok_and(is_loop);
    let is_everywhere = own_major.is_ok_and(|major| own_minor.is_ok_and(|minor| is_guest_device(major, minor)));
    let list = match device.typ() {
        LinuxDeviceType::B if !is_loop => "block",
        LinuxDeviceType::C | LinuxDeviceType::U if !is_everywhere => "char",
        _ => return false,
    };
    lists.join(list).join(format!("{major}:{minor}")).exists()
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
    fn only_what_the_host_alone_has_is_foreign() {
        let lists = tempfile::tempdir().unwrap();
        for name in ["char/1:3", "char/5:2", "char/10:232", "char/10:237", "block/8:0", "block/7:0"] {
            fs::create_dir_all(lists.path().join(name)).unwrap();
        }
        let foreign = |kind, major, minor| is_foreign(&device(kind, major, minor), lists.path());
        assert!(foreign("c", 10, 232) && foreign("u", 10, 232) && foreign("b", 8, 0));
        for (kind, major, minor) in
            [("c", 1, 3), ("c", 5, 2), ("c", 10, 237), ("b", 7, 0), ("b", 1, 3), ("c", 8, 0), ("b", 9, 0), ("p", 0, 0)]
        {
            assert!(!foreign(kind, major, minor), "{kind} {major}:{minor}");
        }
        assert!(refusal(&device("b", 8, 0)).to_string().contains("/dev/x (block 8:0) is a device of the host"));
    }

    #[test]
    fn a_privileged_container_has_loop_devices() {
        let mut devices = vec![device("c", 1, 3)];
        devices[0].set_path("/dev/loop3".into());
        add_loop_devices(&mut devices);
        let told = |device: &LinuxDevice| format!("{} {}:{}", device.path().display(), device.major(), device.minor());
        let told: Vec<_> = devices.iter().map(told).collect();
        assert_eq!((told.len(), told[0].as_str(), told[1].as_str()), (9, "/dev/loop3 1:3", "/dev/loop-control 10:237"));
        assert_eq!((told[5].as_str(), told[8].as_str()), ("/dev/loop4 7:4", "/dev/loop7 7:7"));
    }

    #[test]
    fn only_known_kinds_of_access_are_left() {
        let left = |access: &str| {
            let mut rule = serde_json::from_value(json!({"allow": false, "access": access})).unwrap();
            remove_unknown_access(&mut rule, &Log::new(None, crate::base::log::Format::Text, false).unwrap());
            rule.access().clone().unwrap()
        };
        assert_eq!([left("rwa"), left("m"), left("")], ["rw", "m", ""]);
    }

    #[test]
    fn the_last_rule_for_all_counts() {
        let of = |rules: Value| may_use_all(&serde_json::from_value::<Vec<_>>(rules).unwrap());
        let all = |allow: bool| json!({"allow": allow, "access": "rwm"});
        assert!(
            of(json!([all(true)])) && of(json!([all(false), {"allow": true, "type": "a", "major": -1, "minor": -1}]))
        );
        assert!(!of(json!([])) && !of(json!([all(true), all(false)])));
        assert!(!of(json!([all(false), {"allow": true, "type": "c", "access": "m"}])));
    }
}
