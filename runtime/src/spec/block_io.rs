//! Limits of block I/O, `linux.resources.blockIO`.
//!
//! The VMM reads and writes the container's files on the host's devices, so limits of devices apply to the VMM's cgroup. The guest does
//! not have these devices.

use oci_spec::runtime::{LinuxBlockIo, LinuxResources, LinuxThrottleDevice, Spec};

/// The limits that apply on the host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct BlockIo {
    /// Weight for all devices, from 10 to 1000. The guest gets it as well.
    weight: Option<u16>,
    /// Weights for single devices.
    device_weights: Vec<(Device, u16)>,
    throttles: Vec<(Throttle, Device, u64)>,
}

/// A block device as `MAJOR:MINOR`, the kernel's notation.
type Device = String;

/// A kind of rate limit of a device, in bytes or operations per second.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Throttle {
    /// Field of the specification.
    field: &'static str,
    /// Key in `io.max` of cgroup v2.
    key: &'static str,
    /// File of cgroup v1.
    file: &'static str,
}

const READ_BPS: Throttle =
    Throttle { field: "blockIO.throttleReadBpsDevice", key: "rbps", file: "blkio.throttle.read_bps_device" };
const WRITE_BPS: Throttle =
    Throttle { field: "blockIO.throttleWriteBpsDevice", key: "wbps", file: "blkio.throttle.write_bps_device" };
const READ_IOPS: Throttle =
    Throttle { field: "blockIO.throttleReadIOPSDevice", key: "riops", file: "blkio.throttle.read_iops_device" };
const WRITE_IOPS: Throttle =
    Throttle { field: "blockIO.throttleWriteIOPSDevice", key: "wiops", file: "blkio.throttle.write_iops_device" };

impl BlockIo {
    /// Extracts the limits. A weight of zero means no weight.
    pub(crate) fn of(resources: Option<&LinuxResources>) -> Self {
        let Some(io) = resources.and_then(|resources| resources.block_io().as_ref()) else { return Self::default() };
        let weights = io.weight_device().iter().flatten();
        let weights = weights.filter_map(|one| {
            let weight = one.weight().filter(|weight| *weight != 0)?;
            Some((device(one.major(), one.minor()), weight))
        });
        let throttles = throttles(io).into_iter().flat_map(|(kind, list)| {
            let list = list.iter().flatten();
            list.map(move |one| (kind, device(one.major(), one.minor()), one.rate()))
        });
        Self {
            weight: io.weight().filter(|weight| *weight != 0),
            device_weights: weights.collect(),
            throttles: throttles.collect(),
        }
    }

    /// The field of the specification that holds the first limit of a device, if there is one. The guest cannot apply it.
    pub(crate) fn first_device_limit(&self) -> Option<&'static str> {
        let throttle = self.throttles.first().map(|(kind, ..)| kind.field);
        throttle.or_else(|| (!self.device_weights.is_empty()).then_some("blockIO.weightDevice"))
    }

    /// Lists the files of a v2 cgroup and the value to write to each, in order. A file may appear several times. `has` returns
    /// whether the cgroup has a file.
    pub(crate) fn cgroup_v2_settings(&self, has: impl Fn(&str) -> bool) -> Vec<(&'static str, String)> {
        // The BFQ scheduler, if loaded, has the range of weights of version 1.
        let (file, convert): (_, fn(u16) -> u64) = match has("io.bfq.weight") {
            true => ("io.bfq.weight", u64::from),
            false => ("io.weight", agent::io_weight),
        };
        let weight = self.weight.filter(|_| has(file)).map(|weight| (file, format!("default {}", convert(weight))));
        let weights =
            self.device_weights.iter().map(|(device, weight)| (file, format!("{device} {}", convert(*weight))));
        let throttles = self.throttles.iter().map(|(kind, device, rate)| match rate {
            0 => ("io.max", format!("{device} {}=max", kind.key)),
            rate => ("io.max", format!("{device} {}={rate}", kind.key)),
        });
        weight.into_iter().chain(weights).chain(throttles).collect()
    }

    /// Lists the files of a v1 `blkio` cgroup and the value to write to each, like [`Self::cgroup_v2_settings`].
    pub(crate) fn cgroup_v1_settings(&self, has: impl Fn(&str) -> bool) -> Vec<(&'static str, String)> {
        let (file, device_file) = match has("blkio.bfq.weight") {
            true => ("blkio.bfq.weight", "blkio.bfq.weight_device"),
            false => ("blkio.weight", "blkio.weight_device"),
        };
        let weight = self.weight.filter(|_| has(file)).map(|weight| (file, weight.to_string()));
        let weights = self.device_weights.iter().map(|(device, weight)| (device_file, format!("{device} {weight}")));
        let throttles = self.throttles.iter().map(|(kind, device, rate)| (kind.file, format!("{device} {rate}")));
        weight.into_iter().chain(weights).chain(throttles).collect()
    }
}

/// Removes the limits of the host's devices from the guest's specification. Leaf weights of devices remain: no kernel supports them any
/// more.
pub(crate) fn remove_host_limits(spec: &mut Spec) {
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    if let Some(io) = resources.and_then(|resources| resources.block_io_mut().as_mut()) {
        let weights = io.weight_device().iter().flatten();
        let leaves: Vec<_> = weights.filter(|one| one.leaf_weight().is_some_and(|leaf| leaf != 0)).copied().collect();
        io.set_weight_device(Some(leaves).filter(|leaves| !leaves.is_empty()))
            .set_throttle_read_bps_device(None)
            .set_throttle_write_bps_device(None)
            .set_throttle_read_iops_device(None)
            .set_throttle_write_iops_device(None);
    }
}

fn throttles(io: &LinuxBlockIo) -> [(Throttle, &Option<Vec<LinuxThrottleDevice>>); 4] {
    [
        (READ_BPS, io.throttle_read_bps_device()),
        (WRITE_BPS, io.throttle_write_bps_device()),
        (READ_IOPS, io.throttle_read_iops_device()),
        (WRITE_IOPS, io.throttle_write_iops_device()),
    ]
}

fn device(major: i64, minor: i64) -> Device {
    format!("{major}:{minor}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn io() -> BlockIo {
        let one = |rate| json!([{"major": 8, "minor": 16, "rate": rate}]);
        let resources = json!({"blockIO": {
            "weight": 10, "weightDevice": [{"major": 7, "minor": 0, "weight": 1000}],
            "throttleReadBpsDevice": one(1024), "throttleWriteIOPSDevice": one(0)}});
        BlockIo::of(Some(&serde_json::from_value(resources).unwrap()))
    }

    fn to_owned<'a>(pairs: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
        pairs.iter().map(|(file, value)| (*file, (*value).to_owned())).collect()
    }

    #[test]
    fn the_v2_files_get_values_in_their_format() {
        let throttles = [("io.max", "8:16 rbps=1024"), ("io.max", "8:16 wiops=max")];
        let weights = [("io.weight", "default 1"), ("io.weight", "7:0 10000")];
        assert_eq!(io().cgroup_v2_settings(|file| file == "io.weight"), to_owned(&[weights, throttles].concat()));
        let weights = [("io.bfq.weight", "default 10"), ("io.bfq.weight", "7:0 1000")];
        assert_eq!(io().cgroup_v2_settings(|_| true), to_owned(&[weights, throttles].concat()));
        assert_eq!(
            io().cgroup_v2_settings(|_| false)[0],
            ("io.weight", "7:0 10000".into()),
            "without a file for it, the weight applies in the guest only"
        );
    }

    #[test]
    fn the_v1_files_get_values_in_their_format() {
        let throttles =
            [("blkio.throttle.read_bps_device", "8:16 1024"), ("blkio.throttle.write_iops_device", "8:16 0")];
        let weights = [("blkio.weight", "10"), ("blkio.weight_device", "7:0 1000")];
        assert_eq!(io().cgroup_v1_settings(|file| file == "blkio.weight"), to_owned(&[weights, throttles].concat()));
    }

    #[test]
    fn only_limits_of_devices_apply_to_the_host_alone() {
        assert_eq!(io().first_device_limit(), Some("blockIO.throttleReadBpsDevice"));
        let weight = serde_json::from_value(json!({"blockIO": {"weight": 100}})).unwrap();
        assert_eq!(BlockIo::of(Some(&weight)).first_device_limit(), None);
        let spec = |io| -> Spec { serde_json::from_value(json!({"linux": {"resources": {"blockIO": io}}})).unwrap() };
        let leaf = json!({"major": 1, "minor": 2, "leafWeight": 4});
        let mut all = spec(json!({"weight": 100, "leafWeight": 5,
            "weightDevice": [{"major": 1, "minor": 2, "weight": 3}, leaf],
            "throttleReadIOPSDevice": [{"major": 1, "minor": 2, "rate": 3}]}));
        remove_host_limits(&mut all);
        assert_eq!(all, spec(json!({"weight": 100, "leafWeight": 5, "weightDevice": [leaf]})));
    }
}
