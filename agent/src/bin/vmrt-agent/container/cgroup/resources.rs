//! `linux.resources` as the content of cgroup v2 control files.

use std::os::fd::BorrowedFd;

use agent::{cpu_weight, io_weight};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids, LinuxResources,
};
use rustix::io::Errno;

use crate::container::cgroup::devices::DeviceRules;
use crate::error::Error;
use crate::sys::files;

/// Default period of a CPU quota, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// Control files to write, in order, and device rules.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Settings {
    files: Vec<Setting>,
    /// Memory limits that are refused if the usage is not below them (`checkBeforeUpdate`): name and bytes.
    checked_limits: Vec<(&'static str, u64)>,
    devices: DeviceRules,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Setting {
    file: String,
    value: String,
    /// Whether the file may be missing, because the resource that it limits is missing, too.
    optional: bool,
}

impl Settings {
    /// Checks and converts resources.
    pub(crate) fn new(resources: &LinuxResources) -> Result<Self, Error> {
        let mut settings = Self::default();
        resources.memory().as_ref().map_or(Ok(()), |memory| settings.add_memory(memory))?;
        resources.cpu().as_ref().map_or(Ok(()), |cpu| settings.add_cpu(cpu))?;
        resources.pids().as_ref().map_or(Ok(()), |pids| settings.add_pids(pids))?;
        resources.block_io().as_ref().map_or(Ok(()), |io| settings.add_block_io(io))?;
        resources.hugepage_limits().iter().flatten().try_for_each(|limit| settings.add_hugepages(limit))?;
        resources.network().as_ref().map_or(Ok(()), refuse_network)?;
        if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
            return Err(unsupported("rdma"));
        }
        for (file, value) in resources.unified().iter().flatten() {
            settings.add_unified(file, value)?;
        }
        settings.devices = DeviceRules::new(resources.devices().as_deref().unwrap_or_default())?;
        Ok(settings)
    }

    /// Writes the control files of the cgroup `directory` and applies the device rules.
    pub(crate) fn apply(&self, directory: BorrowedFd<'_>) -> Result<(), Error> {
        self.apply_limits(directory)?;
        self.devices.apply(directory)
    }

    /// Refuses memory limits at or below the usage of `directory`, if the specification requests that check.
    pub(crate) fn check_usage(&self, directory: BorrowedFd<'_>) -> Result<(), Error> {
        if self.checked_limits.is_empty() {
            return Ok(());
        }
        let used = files::read_at(directory, "memory.current", 64).map_err(Error::at("read memory.current"))?;
        let used: u64 = String::from_utf8_lossy(&used).trim().parse().unwrap_or(0);
        match self.checked_limits.iter().find(|(_, limit)| *limit <= used) {
            Some((name, limit)) => {
                Err(Error::invalid("linux.resources.memory", format!("rejecting {name} limit {limit} <= usage {used}")))
            }
            None => Ok(()),
        }
    }

    /// Writes the control files only.
    pub(crate) fn apply_limits(&self, directory: BorrowedFd<'_>) -> Result<(), Error> {
        for Setting { file, value, optional } in &self.files {
            match files::write_at(directory, file, value.as_bytes()) {
                Err(Errno::NOENT) if *optional => {}
                result => result.map_err(Error::at(format!("write {value:?} to {file} of the container's cgroup")))?,
            }
        }
        Ok(())
    }

    fn add_file(&mut self, file: &str, value: impl std::fmt::Display) {
        self.files.push(Setting { file: file.into(), value: value.to_string(), optional: false });
    }

    fn add_memory(&mut self, memory: &LinuxMemory) -> Result<(), Error> {
        refuse_memory(memory)?;
        let limit = memory.limit().filter(|limit| *limit != 0);
        if memory.check_before_update() == Some(true) {
            let limits = [("memory+swap", memory.swap()), ("memory", memory.limit())];
            let positive =
                |(name, limit): (_, Option<i64>)| Some((name, u64::try_from(limit?).ok().filter(|l| *l > 0)?));
            self.checked_limits.extend(limits.into_iter().filter_map(positive));
        }
        if let Some(swap) = swap_limit(limit, memory.swap().unwrap_or(0))? {
            // Without swap there is nothing to limit. Only a guaranteed amount of swap would be impossible.
            let optional = swap == "max" || swap == "0";
            self.files.push(Setting { file: "memory.swap.max".into(), value: swap, optional });
        }
        if let Some(limit) = limit {
            self.add_file("memory.max", limit_value(limit));
        }
        if let Some(low) = memory.reservation().filter(|low| *low != 0) {
            self.add_file("memory.low", limit_value(low));
        }
        Ok(())
    }

    fn add_cpu(&mut self, cpu: &LinuxCpu) -> Result<(), Error> {
        let realtime = [
            ("cpu.realtimeRuntime", cpu.realtime_runtime().is_some_and(|time| time != 0)),
            ("cpu.realtimePeriod", cpu.realtime_period().is_some_and(|time| time != 0)),
        ];
        refuse(&realtime)?;
        if let Some(idle) = cpu.idle() {
            self.add_file("cpu.idle", idle);
        }
        // An idle cgroup has no weight.
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && cpu.idle().unwrap_or(0) == 0) {
            self.add_file("cpu.weight", cpu_weight(shares));
        }
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let period = cpu.period().filter(|period| *period != 0);
        if quota.is_some() || period.is_some() {
            let quota = quota.filter(|quota| *quota > 0).map_or("max".into(), |quota| quota.to_string());
            self.add_file("cpu.max", format!("{quota} {}", period.unwrap_or(CPU_PERIOD)));
        }
        if let Some(burst) = cpu.burst() {
            self.add_file("cpu.max.burst", burst);
        }
        for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                self.add_file(file, list);
            }
        }
        Ok(())
    }

    fn add_pids(&mut self, pids: &LinuxPids) -> Result<(), Error> {
        if pids.limit() != 0 {
            self.add_file("pids.max", limit_value(pids.limit()));
        }
        Ok(())
    }

    /// Block devices are the guest's own, so rules with device numbers of the host are meaningless. Only the weight is
    /// supported.
    fn add_block_io(&mut self, io: &LinuxBlockIo) -> Result<(), Error> {
        refuse(&[
            ("blockIO.leafWeight", io.leaf_weight().is_some_and(|weight| weight != 0)),
            ("blockIO.weightDevice", io.weight_device().as_ref().is_some_and(|list| !list.is_empty())),
            (
                "blockIO.throttleReadBpsDevice",
                io.throttle_read_bps_device().as_ref().is_some_and(|list| !list.is_empty()),
            ),
            (
                "blockIO.throttleWriteBpsDevice",
                io.throttle_write_bps_device().as_ref().is_some_and(|list| !list.is_empty()),
            ),
            (
                "blockIO.throttleReadIOPSDevice",
                io.throttle_read_iops_device().as_ref().is_some_and(|list| !list.is_empty()),
            ),
            (
                "blockIO.throttleWriteIOPSDevice",
                io.throttle_write_iops_device().as_ref().is_some_and(|list| !list.is_empty()),
            ),
        ])?;
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            self.add_file("io.weight", format!("default {}", io_weight(weight)));
        }
        Ok(())
    }

    fn add_hugepages(&mut self, limit: &LinuxHugepageLimit) -> Result<(), Error> {
        let size = limit.page_size();
        if size.contains('/') {
            return Err(Error::invalid("linux.resources.hugepageLimits", format!("{size:?} is not a page size")));
        }
        self.add_file(&format!("hugetlb.{size}.max"), limit_value(limit.limit()));
        Ok(())
    }

    fn add_unified(&mut self, file: &str, value: &str) -> Result<(), Error> {
        let known = file.contains('.') && !file.contains('/') && !file.starts_with("cgroup.");
        if !known {
            return Err(Error::invalid(
                format!("linux.resources.unified: {file}"),
                "is not a control file of a resource",
            ));
        }
        self.add_file(file, value);
        Ok(())
    }
}

fn unsupported(field: &str) -> Error {
    Error::invalid(format!("linux.resources.{field}"), "cannot be set in the guest")
}

fn refuse(fields: &[(&str, bool)]) -> Result<(), Error> {
    match fields.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(unsupported(field)),
        None => Ok(()),
    }
}

fn refuse_memory(memory: &LinuxMemory) -> Result<(), Error> {
    refuse(&[
        ("memory.kernel", memory.kernel().is_some_and(|limit| limit > 0)),
        ("memory.kernelTCP", memory.kernel_tcp().is_some_and(|limit| limit > 0)),
        ("memory.swappiness", memory.swappiness().is_some()),
        ("memory.disableOOMKiller", memory.disable_oom_killer().unwrap_or(false)),
    ])
}

fn refuse_network(network: &LinuxNetwork) -> Result<(), Error> {
    refuse(&[
        ("network.classID", network.class_id().is_some_and(|id| id != 0)),
        ("network.priorities", network.priorities().as_ref().is_some_and(|list| !list.is_empty())),
    ])
}

/// A limit as text; a negative one means none.
fn limit_value(limit: i64) -> String {
    match limit {
        0.. => limit.to_string(),
        _ => "max".into(),
    }
}

/// The swap limit; `None` if there is none to set. The specification limits the sum of memory and swap, cgroup v2 only
/// swap.
fn swap_limit(limit: Option<i64>, total: i64) -> Result<Option<String>, Error> {
    let invalid = |reason| Err(Error::invalid("linux.resources.memory.swap", reason));
    match (limit, total) {
        (Some(..0), 0) => Ok(Some("max".into())),
        (_, 0) => Ok(None),
        (_, ..0) => Ok(Some("max".into())),
        (None, _) => invalid("a limit of memory and swap together needs a limit of memory"),
        (Some(limit), total) if total < limit => invalid("is less than the limit of memory"),
        (Some(limit), total) => Ok(Some((total - limit.max(0)).to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::fd::AsFd;

    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResourcesBuilder};

    use super::*;

    fn written(resources: LinuxResourcesBuilder) -> Vec<(String, String)> {
        let settings = Settings::new(&resources.build().unwrap()).unwrap();
        settings.files.into_iter().map(|setting| (setting.file, setting.value)).collect()
    }

    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
        pairs.map(|(file, value)| (file.to_owned(), value.to_owned())).to_vec()
    }

    #[test]
    fn memory_limits_are_converted() {
        let memory = |limit, swap| LinuxMemoryBuilder::default().limit(limit).swap(swap).build().unwrap();
        let resources = |limit: i64, swap: i64| LinuxResourcesBuilder::default().memory(memory(limit, swap));
        assert_eq!(written(resources(100, 300)), pairs([("memory.swap.max", "200"), ("memory.max", "100")]));
        assert_eq!(written(resources(100, -1)), pairs([("memory.swap.max", "max"), ("memory.max", "100")]));
        assert_eq!(written(resources(-1, 0)), pairs([("memory.swap.max", "max"), ("memory.max", "max")]));
        assert!(Settings::new(&resources(100, 50).build().unwrap()).unwrap_err().to_string().contains("swap"));
        assert!(Settings::new(&resources(0, 50).build().unwrap()).is_err());
    }

    #[test]
    fn limits_at_or_below_the_usage_are_refused_if_checked() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("memory.current"), "4096\n").unwrap();
        let directory = std::fs::File::open(directory.path()).unwrap();
        let check = |limit: i64, swap: i64, check| {
            let memory = LinuxMemoryBuilder::default().limit(limit).swap(swap).check_before_update(check);
            let resources = LinuxResourcesBuilder::default().memory(memory.build().unwrap()).build().unwrap();
            Settings::new(&resources).unwrap().check_usage(directory.as_fd()).map_err(|error| error.to_string())
        };
        assert!(check(4096, 8192, true).unwrap_err().ends_with("rejecting memory limit 4096 <= usage 4096"));
        assert!(check(1024, 2048, true).unwrap_err().ends_with("rejecting memory+swap limit 2048 <= usage 4096"));
        for (limit, swap, wanted) in [(4097, 8192, true), (1024, 2048, false), (-1, -1, true)] {
            assert_eq!(check(limit, swap, wanted), Ok(()));
        }
    }

    #[test]
    fn cpu_limits_are_converted() {
        let cpu = LinuxCpuBuilder::default().shares(1024_u64).quota(50_000).cpus("0-1").build().unwrap();
        let expected = pairs([("cpu.weight", "39"), ("cpu.max", "50000 100000"), ("cpuset.cpus", "0-1")]);
        assert_eq!(written(LinuxResourcesBuilder::default().cpu(cpu)), expected);
        let idle = |idle: i64| LinuxCpuBuilder::default().shares(1024_u64).idle(idle).build().unwrap();
        assert_eq!(written(LinuxResourcesBuilder::default().cpu(idle(1))), pairs([("cpu.idle", "1")]));
        let expected = pairs([("cpu.idle", "0"), ("cpu.weight", "39")]);
        assert_eq!(written(LinuxResourcesBuilder::default().cpu(idle(0))), expected);
        let cpu = LinuxCpuBuilder::default().quota(-1).period(50_000_u64).build().unwrap();
        assert_eq!(written(LinuxResourcesBuilder::default().cpu(cpu)), pairs([("cpu.max", "max 50000")]));
    }

    #[test]
    fn a_negative_number_of_pids_means_no_limit() {
        let pids = |limit: i64| {
            LinuxResourcesBuilder::default().pids(LinuxPidsBuilder::default().limit(limit).build().unwrap())
        };
        assert_eq!(written(pids(20)), pairs([("pids.max", "20")]));
        assert_eq!(written(pids(-1)), pairs([("pids.max", "max")]));
        assert_eq!(written(pids(0)), []);
    }

    #[test]
    fn unified_files_outside_the_cgroup_are_refused() {
        let unified = |file: &str| {
            let unified = HashMap::from([(file.to_owned(), "1".to_owned())]);
            Settings::new(&LinuxResourcesBuilder::default().unified(unified).build().unwrap())
        };
        assert!(unified("memory.high").is_ok());
        for bad in ["../memory.high", "cgroup.procs", "tasks"] {
            assert!(unified(bad).unwrap_err().to_string().contains(bad));
        }
    }

    #[test]
    fn unsupported_resources_are_refused_by_name() {
        let memory = LinuxMemoryBuilder::default().swappiness(60_u64).build().unwrap();
        let resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
        let error = Settings::new(&resources).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.memory.swappiness"));
    }
}
