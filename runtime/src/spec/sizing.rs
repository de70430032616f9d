//! The size of a container's virtual machine.

use std::collections::HashMap;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm::config::{MAX_VCPUS, MIN_MEMORY_MIB};

use crate::base::config::Config;

/// Annotation with the guest's memory, such as `512M`. It has precedence over the container's limit.
pub(crate) const MEMORY_ANNOTATION: &str = "dev.vmrt.memory";

/// Annotation with the number of vCPUs. It has precedence over the container's quota.
pub(crate) const VCPUS_ANNOTATION: &str = "dev.vmrt.vcpus";

/// Annotations of a pod's sandbox with the sums of the containers' resources: containerd's names, and values as in `linux.resources`
/// (bytes; microseconds). 0 means none.
const POD_MEMORY_ANNOTATION: &str = "io.kubernetes.cri.sandbox-memory";
const POD_QUOTA_ANNOTATION: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_PERIOD_ANNOTATION: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// Memory that the guest's kernel and agent need in addition to the container's limit, in MiB.
const GUEST_OVERHEAD_MIB: u64 = 128;

const MIB: u64 = 1 << 20;

/// Linux's period for a quota of CPU time, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// Why a machine cannot have its size.
#[derive(Debug, Error)]
pub(crate) enum SizeError {
    #[error("annotation {name} is `{value}`, which is not {expected}")]
    Annotation { name: &'static str, value: String, expected: &'static str },
    #[error("{0} MiB of guest memory are too little to boot: the minimum is {MIN_MEMORY_MIB} MiB")]
    TooSmall(u64),
    #[error("{asked} MiB of guest memory are more than the {host} MiB of the host")]
    TooLarge { asked: u64, host: u64 },
    #[error("{0} vCPUs are not between 1 and {MAX_VCPUS}")]
    Vcpus(u64),
    #[error(
        "the memory limit cannot become {limit} MiB: with {GUEST_OVERHEAD_MIB} MiB for the guest's kernel and agent that \
         takes a machine of {} MiB, and the host has {host} MiB",
        limit + GUEST_OVERHEAD_MIB
    )]
    LimitTooLarge { limit: u64, host: u64 },
}

/// The size of a virtual machine.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Size {
    pub(crate) memory_mib: u64,
    pub(crate) vcpus: u8,
}

impl Size {
    /// The size of a machine that does not exist.
    pub(crate) const NONE: Self = Self { memory_mib: 0, vcpus: 0 };

    /// Determines the size from vmrt's annotations, or else the container's limits, or else those of its pod, or else the configuration.
    pub(crate) fn of(spec: &Spec, config: &Config) -> Result<Self, SizeError> {
        let none = HashMap::new();
        let annotations = spec.annotations().as_ref().unwrap_or(&none);
        Ok(Self { memory_mib: memory(spec, annotations, config)?, vcpus: vcpus(spec, annotations, config)? })
    }
}

fn memory(spec: &Spec, annotations: &HashMap<String, String>, config: &Config) -> Result<u64, SizeError> {
    let mib = match annotations.get(MEMORY_ANNOTATION) {
        Some(text) => parse_mib(text).ok_or_else(|| SizeError::Annotation {
            name: MEMORY_ANNOTATION,
            value: text.clone(),
            expected: "an amount of memory such as `512M` or `2G`",
        })?,
        None => match memory_limit(spec).or_else(|| pod_memory(annotations)) {
            Some(bytes) => bytes.div_ceil(MIB) + GUEST_OVERHEAD_MIB,
            None => config.memory_mib,
        },
    };
    check_memory(mib, host_memory_mib())
}

/// The memory in MiB that a machine needs after a change of its container's limits. `None` if it stays the same.
pub(crate) fn changed_memory(before: &Spec, after: &Spec) -> Result<Option<u64>, SizeError> {
    let (old, new) = (configured_memory_limit(before), configured_memory_limit(after));
    let Some(bytes) = new.filter(|_| new != old) else { return Ok(None) };
    let (limit, host) = (bytes.div_ceil(MIB), host_memory_mib());
    match limit + GUEST_OVERHEAD_MIB {
        memory if memory > host => Err(SizeError::LimitTooLarge { limit, host }),
        memory => Ok(Some(memory)),
    }
}

/// The number of vCPUs that a machine needs after a change of its container's quota. `None` if it stays the same. A machine whose
/// number comes from an annotation only gets more.
pub(crate) fn changed_vcpus(before: &Spec, after: &Spec, machine: Size) -> Option<u8> {
    let (old, new) = (vcpus_for_quota(before), vcpus_for_quota(after));
    let is_annotated = after.annotations().as_ref().is_some_and(|all| all.contains_key(VCPUS_ANNOTATION));
    new.filter(|count| new != old && (!is_annotated || *count > machine.vcpus))
}

fn check_memory(asked: u64, host: u64) -> Result<u64, SizeError> {
    match asked {
        ..MIN_MEMORY_MIB => Err(SizeError::TooSmall(asked)),
        _ if asked > host => Err(SizeError::TooLarge { asked, host }),
        _ => Ok(asked),
    }
}

/// The container's memory limit in bytes. `None` without a limit, or if the limit exceeds the host's memory.
fn memory_limit(spec: &Spec) -> Option<u64> {
    configured_memory_limit(spec).filter(|bytes| bytes / MIB + GUEST_OVERHEAD_MIB < host_memory_mib())
}

/// The container's memory limit in bytes, even if it exceeds the host's memory.
fn configured_memory_limit(spec: &Spec) -> Option<u64> {
    /// The value for no limit in cgroup v1, which engines pass on: the largest number of whole pages.
    const NO_LIMIT: u64 = i64::MAX as u64 & !0xfff;
    let memory = spec.linux().as_ref()?.resources().as_ref()?.memory().as_ref()?;
    u64::try_from(memory.limit()?).ok().filter(|bytes| (1..NO_LIMIT).contains(bytes))
}

/// Physical memory of the host in MiB.
pub(crate) fn host_memory_mib() -> u64 {
    let info = nix::sys::sysinfo::sysinfo();
    info.map_or(u64::MAX, |info| info.ram_total() / MIB)
}

fn vcpus(spec: &Spec, annotations: &HashMap<String, String>, config: &Config) -> Result<u8, SizeError> {
    let count = match annotations.get(VCPUS_ANNOTATION) {
        Some(text) => text.parse().map_err(|_| SizeError::Annotation {
            name: VCPUS_ANNOTATION,
            value: text.clone(),
            expected: "a number of vCPUs",
        })?,
        None => vcpus_for_quota(spec).or_else(|| pod_vcpus(annotations)).unwrap_or(config.vcpus).into(),
    };
    let valid = u8::try_from(count).ok().filter(|count| (1..=MAX_VCPUS).contains(count));
    valid.ok_or(SizeError::Vcpus(count))
}

/// The number of vCPUs that can use the container's quota, if it has one. At most the number of the host's CPUs.
fn vcpus_for_quota(spec: &Spec) -> Option<u8> {
    cpu_quota(spec).map(|(quota, period)| vcpus_for(quota, period))
}

fn vcpus_for(quota: u64, period: u64) -> u8 {
    let host = host_cpus();
    u8::try_from(quota.div_ceil(period)).map_or(host, |count| count.clamp(1, host))
}

/// The sum of the memory limits of a pod's containers in bytes. `None` if one has no limit, or if it exceeds the host's memory.
fn pod_memory(annotations: &HashMap<String, String>) -> Option<u64> {
    positive(annotations, POD_MEMORY_ANNOTATION).filter(|bytes| bytes / MIB + GUEST_OVERHEAD_MIB < host_memory_mib())
}

/// The number of vCPUs that can use the sum of the quotas of a pod's containers.
fn pod_vcpus(annotations: &HashMap<String, String>) -> Option<u8> {
    let quota = positive(annotations, POD_QUOTA_ANNOTATION)?;
    Some(vcpus_for(quota, positive(annotations, POD_PERIOD_ANNOTATION).unwrap_or(DEFAULT_PERIOD)))
}

/// The value of an annotation that is a positive number. The others mean none, or come from an engine that means something else.
fn positive(annotations: &HashMap<String, String>, name: &str) -> Option<u64> {
    annotations.get(name)?.parse().ok().filter(|value| *value > 0)
}

/// The number of the host's CPUs, limited to the maximum number of vCPUs.
pub(crate) fn host_cpus() -> u8 {
    let host = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u8::try_from(host).map_or(MAX_VCPUS, |count| count.min(MAX_VCPUS))
}

/// The CPU time that the container may use per period, and the period, both in microseconds. `None` without a limit.
pub(crate) fn cpu_quota(spec: &Spec) -> Option<(u64, u64)> {
    let cpu = spec.linux().as_ref()?.resources().as_ref()?.cpu().as_ref()?;
    let quota = u64::try_from(cpu.quota()?).ok().filter(|quota| *quota > 0)?;
    Some((quota, cpu.period().filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD)))
}

/// Parses an amount of memory in bytes with an optional binary suffix. Returns MiB, rounded up.
fn parse_mib(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].trim_end_matches(['i', 'B']) {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        _ => return None,
    };
    Some(digits.parse::<u64>().ok()?.checked_mul(unit)?.div_ceil(MIB))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    fn size(json: serde_json::Value) -> Result<Size, SizeError> {
        let config = Config {
            file: None,
            program: PathBuf::new(),
            vmm: PathBuf::new(),
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            memory_mib: 300,
            vcpus: 1,
            max_vcpus: 1,
            start_timeout: Duration::ZERO,
            template: false,
            template_dir: PathBuf::new(),
            shared_template_dir: None,
            template_max_mib: 0,
            anti_spoofing: false,
        };
        Size::of(&serde_json::from_value(json).unwrap(), &config)
    }

    #[test]
    fn amounts_of_memory_are_parsed_and_rounded_up() {
        assert_eq!(parse_mib("512M"), Some(512));
        assert_eq!(parse_mib("2GiB"), Some(2048));
        assert_eq!(parse_mib("1"), Some(1));
        assert_eq!(parse_mib("1048577"), Some(2));
        for text in ["", "M", "-1M", "1.5G", "1T", "99999999999999999999", "18446744073709551615G"] {
            assert_eq!(parse_mib(text), None, "{text}");
        }
    }

    #[test]
    fn annotations_have_precedence_over_limits_and_limits_over_the_configuration() {
        let limit = serde_json::json!({"resources": {"memory": {"limit": 64 << 20}}});
        assert_eq!(size(serde_json::json!({})).unwrap(), Size { memory_mib: 300, vcpus: 1 });
        assert_eq!(size(serde_json::json!({"linux": limit})).unwrap().memory_mib, 64 + 128);
        let annotated =
            serde_json::json!({"annotations": {MEMORY_ANNOTATION: "100M", VCPUS_ANNOTATION: "3"}, "linux": limit});
        assert_eq!(size(annotated).unwrap(), Size { memory_mib: 100, vcpus: 3 });
    }

    #[test]
    fn a_pods_sandbox_has_the_size_of_its_containers() {
        let pod = |memory: &str, quota: &str, period: &str, linux: serde_json::Value| {
            let annotations = serde_json::json!({
                POD_MEMORY_ANNOTATION: memory, POD_QUOTA_ANNOTATION: quota, POD_PERIOD_ANNOTATION: period,
            });
            size(serde_json::json!({"annotations": annotations, "linux": linux})).unwrap()
        };
        let none = || serde_json::json!({});
        let cpus = |count: u8| count.min(host_cpus());
        assert_eq!(pod("1073741824", "150000", "100000", none()), Size { memory_mib: 1024 + 128, vcpus: cpus(2) });
        assert_eq!(pod("1073741824", "150000", "", none()).vcpus, cpus(2));
        assert_eq!(pod("0", "0", "100000", none()), Size { memory_mib: 300, vcpus: 1 });
        assert_eq!(pod("-1", "-1", "x", none()), Size { memory_mib: 300, vcpus: 1 });
        assert_eq!(pod(&u64::MAX.to_string(), "0", "0", none()).memory_mib, 300);
        let own = serde_json::json!({"resources": {"memory": {"limit": 64 << 20}}});
        assert_eq!(pod("1073741824", "0", "0", own).memory_mib, 64 + 128);
    }

    #[test]
    fn a_limit_that_means_unlimited_is_ignored() {
        for limit in [-1, 0, i64::MAX] {
            let spec = serde_json::json!({"linux": {"resources": {"memory": {"limit": limit}}}});
            assert_eq!(size(spec).unwrap().memory_mib, 300, "{limit}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let annotated = |name: &str, value: &str| size(serde_json::json!({"annotations": {name: value}}));
        assert!(matches!(annotated(MEMORY_ANNOTATION, "8M"), Err(SizeError::TooSmall(8))));
        assert!(matches!(annotated(MEMORY_ANNOTATION, "much"), Err(SizeError::Annotation { .. })));
        assert!(matches!(annotated(MEMORY_ANNOTATION, "9000000G"), Err(SizeError::TooLarge { .. })));
        assert!(matches!(annotated(VCPUS_ANNOTATION, "0"), Err(SizeError::Vcpus(0))));
        assert!(matches!(annotated(VCPUS_ANNOTATION, "65"), Err(SizeError::Vcpus(65))));
        assert!(matches!(annotated(VCPUS_ANNOTATION, "two"), Err(SizeError::Annotation { .. })));
    }

    fn limited(resources: &serde_json::Value) -> Spec {
        serde_json::from_value(serde_json::json!({"linux": {"resources": resources}})).unwrap()
    }

    #[test]
    fn a_changed_limit_changes_the_memory() {
        let memory = |bytes: i64| limited(&serde_json::json!({"memory": {"limit": bytes}}));
        let changed = |before: &Spec, after: &Spec| changed_memory(before, after).unwrap();
        assert_eq!(changed(&memory(64 << 20), &memory(129 << 20)), Some(129 + 128));
        assert_eq!(changed(&memory(200 << 20), &memory((150 << 20) + 1)), Some(151 + 128));
        assert_eq!(changed(&Spec::default(), &memory(64 << 20)), Some(64 + 128));
        assert_eq!(changed(&memory(64 << 20), &memory(64 << 20)), None);
        for none in [-1, 0, i64::MAX, i64::MAX - 4095] {
            assert_eq!(changed(&memory(64 << 20), &memory(none)), None, "{none}");
        }
        let error = changed_memory(&memory(64 << 20), &memory(1 << 50)).unwrap_err().to_string();
        assert!(error.contains("1073741824 MiB") && error.contains("the host has"), "{error}");
    }

    #[test]
    fn a_changed_quota_changes_the_vcpus() {
        let quota = |quota: i64| limited(&serde_json::json!({"cpu": {"quota": quota, "period": 100_000}}));
        let machine = Size { memory_mib: 256, vcpus: 1 };
        let changed = |before: &Spec, after: &Spec| changed_vcpus(before, after, machine);
        assert_eq!(changed(&quota(50_000), &quota(60_000)), None);
        assert_eq!(changed(&quota(50_000), &quota(-1)), None);
        assert_eq!(changed(&Spec::default(), &quota(1)), Some(1));
        assert_eq!(changed(&Spec::default(), &quota(i64::MAX)), Some(host_cpus()));
        if host_cpus() > 1 {
            assert_eq!(changed(&quota(50_000), &quota(100_001)), Some(2));
            assert_eq!(changed(&quota(200_000), &quota(100_000)), Some(1));
        }
    }

    #[test]
    fn an_annotation_sets_the_minimum_of_vcpus() {
        let annotated = |quota: u64| -> Spec {
            let cpu = serde_json::json!({"quota": quota, "period": 1000});
            let annotations = serde_json::json!({VCPUS_ANNOTATION: "2"});
            let linux = serde_json::json!({"resources": {"cpu": cpu}});
            serde_json::from_value(serde_json::json!({"annotations": annotations, "linux": linux})).unwrap()
        };
        let changed = |vcpus, before, after| {
            changed_vcpus(&annotated(before), &annotated(after), Size { memory_mib: 256, vcpus })
        };
        if host_cpus() > 1 {
            assert_eq!((changed(2, 2000, 1000), changed(2, 1000, 2000), changed(1, 1000, 2000)), (None, None, Some(2)));
        }
    }
}
