//! What a VMM may use of the host: its container's limits, and what its machine needs besides.

use oci_spec::runtime::Spec;

use crate::spec::block_io::BlockIo;
use crate::spec::sizing::{Size, cpu_quota};

/// Memory of a VMM besides its guest's, in MiB: its own, the kernel's page tables for the guest, and the page cache of
/// the files it serves, which the kernel reclaims.
pub(crate) const VMM_MEMORY_MIB: u64 = 128;

/// Threads of a VMM besides its vCPUs.
const VMM_THREADS: u64 = 64;

/// Share of the container's CPU time that its VMM may use besides: device work is done on the host.
const VMM_CPU_SHARE: u64 = 4;

/// And the least, as a share of one CPU: the guest's kernel and the agent do not count as the container's, and with none they hold
/// up every request.
const VMM_LEAST_CPU_SHARE: u64 = 10;

/// Limits of a VMM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Limits {
    /// Bytes.
    pub(crate) memory: u64,
    /// Number of threads.
    pub(crate) pids: u64,
    /// Microseconds of CPU time in each period of so many microseconds.
    pub(crate) cpu_quota: Option<(u64, u64)>,
    /// Weight against others, in the units of cgroup v1.
    pub(crate) cpu_shares: Option<u64>,
    /// Whether it only runs when nothing else does, and so has no weight.
    pub(crate) cpu_idle: Option<bool>,
    /// CPUs of the host, as a list.
    pub(crate) cpus: Option<String>,
    /// Memory nodes of the host, as a list.
    pub(crate) mems: Option<String>,
    /// Devices the container's files are on.
    pub(crate) block_io: BlockIo,
}

impl Limits {
    /// A limit among them that nothing in the guest can stand for, by its name in the specification.
    pub(crate) fn first_host_only_limit(&self) -> Option<&'static str> {
        match self {
            Self { cpu_shares: Some(_), .. } => Some("cpu.shares"),
            Self { cpus: Some(_), .. } => Some("cpu.cpus"),
            Self { mems: Some(_), .. } => Some("cpu.mems"),
            _ => self.block_io.first_device_limit(),
        }
    }

    /// Limits for the machine of that size that runs the container of `spec`.
    pub(crate) fn of(spec: &Spec, size: Size) -> Self {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        Self {
            memory: (size.memory_mib + VMM_MEMORY_MIB) << 20,
            pids: u64::from(size.vcpus) + VMM_THREADS,
            cpu_quota: cpu_quota(spec)
                .map(|(quota, period)| (quota + (quota / VMM_CPU_SHARE).max(period / VMM_LEAST_CPU_SHARE), period)),
            cpu_shares: cpu.and_then(|cpu| cpu.shares()).filter(|shares| *shares > 0),
            cpu_idle: cpu.and_then(|cpu| cpu.idle()).map(|idle| idle != 0),
            cpus: cpu.and_then(|cpu| cpu.cpus().clone()).filter(|list| !list.is_empty()),
            mems: cpu.and_then(|cpu| cpu.mems().clone()).filter(|list| !list.is_empty()),
            block_io: BlockIo::of(resources),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_gets_its_containers_limits_and_what_it_needs_besides() {
        let spec = serde_json::json!({"linux": {"resources": {"cpu": {
            "quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0-1", "mems": ""}}}});
        let limits = Limits::of(&serde_json::from_value(spec).unwrap(), Size { memory_mib: 512, vcpus: 2 });
        assert_eq!(limits.memory, 640 << 20);
        assert_eq!(limits.pids, 66);
        assert_eq!(limits.cpu_quota, Some((62_500, 100_000)));
        assert_eq!((limits.cpu_shares, limits.cpus.as_deref(), limits.mems), (Some(512), Some("0-1"), None));
    }

    #[test]
    fn some_limits_are_of_the_host_alone() {
        let of = |cpu| {
            let spec = serde_json::json!({"linux": {"resources": {"cpu": cpu}}});
            Limits::of(&serde_json::from_value(spec).unwrap(), Size { memory_mib: 64, vcpus: 1 })
                .first_host_only_limit()
        };
        assert_eq!(of(serde_json::json!({"quota": 50_000, "period": 100_000})), None);
        assert_eq!(of(serde_json::json!({"shares": 512})), Some("cpu.shares"));
        assert_eq!(of(serde_json::json!({"cpus": "0"})), Some("cpu.cpus"));
        assert_eq!(of(serde_json::json!({"mems": "0"})), Some("cpu.mems"));
    }

    #[test]
    fn a_small_quota_leaves_the_machine_enough() {
        let spec = serde_json::json!({"linux": {"resources": {"cpu": {"quota": 1000, "period": 100_000}}}});
        let limits = Limits::of(&serde_json::from_value(spec).unwrap(), Size { memory_mib: 512, vcpus: 1 });
        assert_eq!(limits.cpu_quota, Some((11_000, 100_000)));
    }

    #[test]
    fn cpu_is_not_limited_unless_the_container_is() {
        let limits = Limits::of(&Spec::default(), Size { memory_mib: 64, vcpus: 1 });
        assert_eq!((limits.cpu_quota, limits.cpu_shares), (None, None));
    }
}
