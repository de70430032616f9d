//! Limits of a VMM on the host: the container's limits plus the overhead of the virtual machine.

use oci_spec::runtime::{LinuxMemory, Spec};

use crate::spec::block_io::BlockIo;
use crate::spec::sizing::{Size, cpu_quota};

/// Memory of a VMM in addition to the guest's, in MiB: the memory of the process, the kernel's page tables for the guest, and the page
/// cache of the files that it serves, which the kernel can reclaim.
pub(crate) const VMM_MEMORY_MIB: u64 = 128;

/// Threads of a VMM in addition to its vCPUs.
const VMM_THREADS: u64 = 64;

/// The container's CPU quota divided by this is the additional quota of the VMM, which emulates devices on the host.
const VMM_QUOTA_DIVISOR: u64 = 4;

/// The period divided by this is the minimum of the additional quota. The guest's kernel and the agent run outside of the container's
/// limit. Without CPU time for them, every request would be slow.
const VMM_MIN_QUOTA_DIVISOR: u64 = 10;

/// Limits of a VMM on the host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Limits {
    /// Memory in bytes.
    pub(crate) memory: u64,
    /// Swap in bytes, in addition to the memory; `None` for no limit.
    pub(crate) swap: Option<u64>,
    /// Number of threads.
    pub(crate) pids: u64,
    /// CPU time per period, and the period, both in microseconds.
    pub(crate) cpu_quota: Option<(u64, u64)>,
    /// CPU weight in the units of cgroup v1.
    pub(crate) cpu_shares: Option<u64>,
    /// Whether the VMM runs only on otherwise idle CPUs. It has no weight then.
    pub(crate) cpu_idle: Option<bool>,
    /// CPUs of the host, in the list format of cpusets.
    pub(crate) cpus: Option<String>,
    /// Memory nodes of the host, in the list format of cpusets.
    pub(crate) mems: Option<String>,
    /// Limits of the devices that hold the container's files.
    pub(crate) block_io: BlockIo,
}

impl Limits {
    /// The field of the specification that holds the first limit that only the host can apply, if there is one.
    pub(crate) fn first_host_only_limit(&self) -> Option<&'static str> {
        match self {
            Self { cpu_shares: Some(_), .. } => Some("cpu.shares"),
            Self { cpus: Some(_), .. } => Some("cpu.cpus"),
            Self { mems: Some(_), .. } => Some("cpu.mems"),
            _ => self.block_io.first_device_limit(),
        }
    }

    /// Computes the limits for a machine of size `size` that runs the container of `spec`.
    pub(crate) fn of(spec: &Spec, size: Size) -> Self {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        Self {
            memory: (size.memory_mib + VMM_MEMORY_MIB) << 20,
            swap: swap(resources.and_then(|resources| resources.memory().as_ref())),
            pids: u64::from(size.vcpus) + VMM_THREADS,
            cpu_quota: cpu_quota(spec).map(|(quota, period)| {
                (quota + (quota / VMM_QUOTA_DIVISOR).max(period / VMM_MIN_QUOTA_DIVISOR), period)
            }),
            cpu_shares: cpu.and_then(|cpu| cpu.shares()).filter(|shares| *shares > 0),
            cpu_idle: cpu.and_then(|cpu| cpu.idle()).map(|idle| idle != 0),
            cpus: cpu.and_then(|cpu| cpu.cpus().clone()).filter(|list| !list.is_empty()),
            mems: cpu.and_then(|cpu| cpu.mems().clone()).filter(|list| !list.is_empty()),
            block_io: BlockIo::of(resources),
        }
    }
}

/// The swap that a container may use: what its limit of memory and swap together leaves beside its memory limit. If it has only the
/// memory limit, the same amount again, which is Docker's default; otherwise the host would swap its machine out without a bound.
fn swap(memory: Option<&LinuxMemory>) -> Option<u64> {
    let limit = u64::try_from(memory?.limit()?).ok().filter(|limit| *limit > 0)?;
    match memory?.swap().unwrap_or_default() {
        0 => Some(limit),
        // -1 is no limit. The guest refuses a total that is below the memory limit.
        total => Some(u64::try_from(total).ok()?.saturating_sub(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_gets_the_limits_of_the_container_plus_overhead() {
        let spec = serde_json::json!({"linux": {"resources": {"cpu": {
            "quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0-1", "mems": ""}}}});
        let limits = Limits::of(&serde_json::from_value(spec).unwrap(), Size { memory_mib: 512, vcpus: 2 });
        assert_eq!(limits.memory, 640 << 20);
        assert_eq!(limits.pids, 66);
        assert_eq!(limits.cpu_quota, Some((62_500, 100_000)));
        assert_eq!((limits.cpu_shares, limits.cpus.as_deref(), limits.mems), (Some(512), Some("0-1"), None));
    }

    #[test]
    fn swap_is_limited_to_what_the_total_leaves() {
        let swap = |memory| {
            let spec = serde_json::json!({"linux": {"resources": {"memory": memory}}});
            Limits::of(&serde_json::from_value(spec).unwrap(), Size { memory_mib: 512, vcpus: 1 }).swap
        };
        assert_eq!(swap(serde_json::json!({"limit": 300, "swap": 500})), Some(200));
        assert_eq!(swap(serde_json::json!({"limit": 300, "swap": 300})), Some(0));
        assert_eq!(swap(serde_json::json!({"limit": 300})), Some(300));
        assert_eq!(swap(serde_json::json!({"limit": 300, "swap": 0})), Some(300));
        for unlimited in [serde_json::json!({"limit": 300, "swap": -1}), serde_json::json!({"limit": -1, "swap": -1})] {
            assert_eq!(swap(unlimited), None);
        }
        assert_eq!(swap(serde_json::json!({})), None);
    }

    #[test]
    fn the_first_limit_that_only_the_host_applies_is_found() {
        let first_limit = |cpu| {
            let spec = serde_json::json!({"linux": {"resources": {"cpu": cpu}}});
            Limits::of(&serde_json::from_value(spec).unwrap(), Size { memory_mib: 64, vcpus: 1 })
                .first_host_only_limit()
        };
        assert_eq!(first_limit(serde_json::json!({"quota": 50_000, "period": 100_000})), None);
        assert_eq!(first_limit(serde_json::json!({"shares": 512})), Some("cpu.shares"));
        assert_eq!(first_limit(serde_json::json!({"cpus": "0"})), Some("cpu.cpus"));
        assert_eq!(first_limit(serde_json::json!({"mems": "0"})), Some("cpu.mems"));
    }

    #[test]
    fn a_small_quota_gets_the_minimum_addition() {
        let spec = serde_json::json!({"linux": {"resources": {"cpu": {"quota": 1000, "period": 100_000}}}});
        let limits = Limits::of(&serde_json::from_value(spec).unwrap(), Size { memory_mib: 512, vcpus: 1 });
        assert_eq!(limits.cpu_quota, Some((11_000, 100_000)));
    }

    #[test]
    fn a_container_without_cpu_limits_has_no_cpu_limits() {
        let limits = Limits::of(&Spec::default(), Size { memory_mib: 64, vcpus: 1 });
        assert_eq!((limits.cpu_quota, limits.cpu_shares), (None, None));
    }
}
