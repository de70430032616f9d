//! A container's specification, checked before anything is made.

use std::path::PathBuf;

use agent::CreateContainer;
use oci_spec::runtime::{Linux, LinuxPersonality, LinuxPersonalityDomain, Spec};
use rustix::thread::ThreadNameSpaceType;

use crate::container::cgroup::{self, Settings};
use crate::container::hooks::StartHooks;
use crate::container::namespaces::sysctl::Sysctl;
use crate::container::namespaces::time::TimeOffsets;
use crate::container::namespaces::user::IdMaps;
use crate::container::namespaces::{Join, Namespaces};
use crate::container::process::ProcessPlan;
use crate::container::process::seccomp::Filter;
use crate::container::rootfs::Rootfs;
use crate::container::rootfs::devices::DevicePlan;
use crate::container::rootfs::mounts::MountPlan;
use crate::error::Error;

/// Everything that a container consists of.
#[derive(Debug)]
pub(crate) struct ContainerPlan {
    /// Its namespaces.
    pub(crate) namespaces: Namespaces,
    /// The namespaces of other containers that it joins.
    pub(crate) joins: Vec<Join>,
    /// Its root.
    pub(crate) rootfs: Rootfs,
    /// Its mounts, in order.
    pub(crate) mounts: Vec<MountPlan>,
    /// Devices to make. `None` if a mount provides `/dev`.
    pub(crate) devices: Option<Vec<DevicePlan>>,
    /// Kernel parameters that its first process sets.
    pub(crate) sysctls: Vec<Sysctl>,
    /// Kernel parameters of its network namespace that the agent sets.
    pub(crate) agent_sysctls: Vec<Sysctl>,
    /// Host name.
    pub(crate) hostname: Option<String>,
    /// NIS domain name.
    pub(crate) domainname: Option<String>,
    /// Execution domain, as a number of the kernel.
    pub(crate) personality: Option<u64>,
    /// Its id.
    pub(crate) container: String,
    /// Its first process.
    pub(crate) process: ProcessPlan,
    /// Its cgroup, relative to that of all containers.
    pub(crate) cgroup: PathBuf,
    /// Limits of that cgroup.
    pub(crate) settings: Settings,
    /// Clocks of its time namespace.
    pub(crate) time_offsets: TimeOffsets,
    /// The `startContainer` hooks.
    pub(crate) start_hooks: Option<StartHooks>,
    /// The system call filter of all its processes.
    pub(crate) seccomp: Option<Filter>,
    /// The mappings of its user namespace.
    pub(crate) id_maps: Option<IdMaps>,
    /// Whether its first process has to wait until the agent has set its id mappings, attached its interfaces and set
    /// kernel parameters.
    pub(crate) awaits_agent: bool,
}

impl ContainerPlan {
    /// Checks a specification.
    pub(crate) fn new(create: &CreateContainer) -> Result<Self, Error> {
        let spec = &create.config.spec;
        let missing = |field: &str| Error::invalid(field, "is missing");
        let linux = spec.linux().as_ref().ok_or_else(|| missing("linux"))?;
        refuse_unsupported(linux)?;
        let (namespaces, joins) = Namespaces::new(linux.namespaces().as_deref().unwrap_or_default())?;
        if !namespaces.has(ThreadNameSpaceType::NETWORK) {
            // In the guest's network namespace, which is the agent's, any process could make vsock sockets.
            return Err(Error::invalid("linux.namespaces", "a container without a network namespace is not supported"));
        }
        let id_maps = IdMaps::new(linux, namespaces)?;
        let mounts = spec.mounts().iter().flatten().map(|mount| MountPlan::new(mount, id_maps.as_ref()));
        let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
        let (agent_sysctls, sysctls) =
            sysctls(linux, namespaces)?.into_iter().partition::<Vec<_>, _>(Sysctl::needs_agent);
        let devices = match mounts.iter().any(|mount| mount.is_bind_at("/dev")) {
            true => None,
            false => Some(DevicePlan::with_defaults(linux.devices().as_deref().unwrap_or_default())?),
        };
        Ok(Self {
            container: create.config.id.clone(),
            namespaces,
            joins,
            rootfs: rootfs(spec, linux)?,
            mounts,
            devices,
            sysctls,
            hostname: host_name("hostname", spec.hostname(), namespaces)?,
            domainname: host_name("domainname", spec.domainname(), namespaces)?,
            personality: linux.personality().as_ref().map(personality).transpose()?,
            process: ProcessPlan::new(spec.process().as_ref().ok_or_else(|| missing("process"))?)?,
            cgroup: cgroup::path(linux.cgroups_path().as_deref(), &create.config.id),
            awaits_agent: namespaces.owns(ThreadNameSpaceType::USER)
                || !create.interfaces.is_empty()
                || !agent_sysctls.is_empty(),
            agent_sysctls,
            id_maps,
            settings: linux.resources().as_ref().map(Settings::new).transpose()?.unwrap_or_default(),
            time_offsets: linux
                .time_offsets()
                .as_ref()
                .map_or_else(|| Ok(TimeOffsets::default()), |offsets| TimeOffsets::new(offsets, namespaces))?,
            start_hooks: StartHooks::new(&create.config),
            seccomp: create.config.seccomp.as_ref().map(Filter::new).transpose()?,
        })
    }

    /// In the agent: makes those devices of the guest that exist only on demand.
    pub(crate) fn prepare_devices(&self) -> Result<(), Error> {
        self.devices.iter().flatten().try_for_each(DevicePlan::prepare)?;
        self.mounts.iter().try_for_each(MountPlan::prepare_source)
    }
}

fn rootfs(spec: &Spec, linux: &Linux) -> Result<Rootfs, Error> {
    let root = spec.root().as_ref().ok_or_else(|| Error::invalid("root", "is missing"))?;
    let paths = |paths: &Option<Vec<String>>| paths.iter().flatten().map(PathBuf::from).collect();
    Ok(Rootfs {
        path: root.path().clone(),
        read_only: root.readonly().unwrap_or(false),
        propagation: Rootfs::parse_propagation(linux.rootfs_propagation().as_deref().unwrap_or_default())?,
        masked: paths(linux.masked_paths()),
        read_only_paths: paths(linux.readonly_paths()),
    })
}

fn sysctls(linux: &Linux, namespaces: Namespaces) -> Result<Vec<Sysctl>, Error> {
    linux.sysctl().iter().flatten().map(|(name, value)| Sysctl::new(name, value, namespaces)).collect()
}

fn host_name(field: &str, name: &Option<String>, namespaces: Namespaces) -> Result<Option<String>, Error> {
    let name = name.clone().filter(|name| !name.is_empty());
    match name.is_some() && !namespaces.has(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME) {
        true => Err(Error::invalid(field, "cannot be set without a uts namespace of the container's own")),
        false => Ok(name),
    }
}

fn personality(personality: &LinuxPersonality) -> Result<u64, Error> {
    /// `PER_LINUX32` of the kernel.
    const LINUX32: u64 = 8;
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(Error::invalid("linux.personality.flags", "are not supported"));
    }
    Ok(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => LINUX32,
    })
}

fn refuse_unsupported(linux: &Linux) -> Result<(), Error> {
    let unsupported = [
        ("linux.seccomp", linux.seccomp().is_some()),
        ("linux.mountLabel", linux.mount_label().as_deref().is_some_and(|label| !label.is_empty())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())),
    ];
    match unsupported.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(Error::invalid(*field, "is not supported")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use agent::{ContainerConfig, Stdio};
    use oci_spec::runtime::{
        LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, SpecBuilder, get_default_namespaces,
    };

    use super::*;

    fn create(spec: Spec) -> CreateContainer {
        let stdio = Stdio::Streams { stdin: None, stdout: None, stderr: None };
        let (bundle, interfaces) = ("/bundle".into(), Vec::new());
        CreateContainer {
            config: ContainerConfig { id: "web".into(), spec, bundle, seccomp: None },
            stdio,
            interfaces,
            special_files: Vec::new(),
            name_server: None,
        }
    }

    #[test]
    fn a_plain_specification_is_accepted() {
        let plan = ContainerPlan::new(&create(Spec::default())).unwrap();
        assert_eq!(plan.cgroup, PathBuf::from("web"));
        assert!(plan.devices.is_some());
        assert!(plan.rootfs.read_only);
    }

    #[test]
    fn a_parameter_that_the_agent_sets_makes_the_process_wait_for_it() {
        let plan = |name: &str| {
            let sysctl = HashMap::from([(name.to_owned(), "1".to_owned())]);
            let linux = LinuxBuilder::default().namespaces(get_default_namespaces()).sysctl(sysctl).build().unwrap();
            ContainerPlan::new(&create(SpecBuilder::default().linux(linux).build().unwrap())).unwrap()
        };
        let (vsock, other) = (plan("net.vsock.enabled"), plan("net.ipv4.ip_forward"));
        assert_eq!((vsock.sysctls.len(), vsock.agent_sysctls.len(), vsock.awaits_agent), (0, 1, true));
        assert_eq!((other.sysctls.len(), other.agent_sysctls.len(), other.awaits_agent), (1, 0, false));
    }

    #[test]
    fn missing_and_unsupported_properties_are_named() {
        let refused = |spec| ContainerPlan::new(&create(spec)).unwrap_err().to_string();
        let mut without = Spec::default();
        without.set_process(None);
        assert_eq!(refused(without), "process: is missing");
        let linux = LinuxBuilder::default().seccomp(LinuxSeccomp::default()).build().unwrap();
        assert!(refused(SpecBuilder::default().linux(linux).build().unwrap()).starts_with("linux.seccomp"));
        let linux = LinuxBuilder::default().namespaces(vec![]).build().unwrap();
        assert!(refused(SpecBuilder::default().linux(linux).build().unwrap()).starts_with("linux.namespaces"));
        let mount = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Mount).build().unwrap();
        let linux = LinuxBuilder::default().namespaces(vec![mount]).build().unwrap();
        assert!(refused(SpecBuilder::default().linux(linux).build().unwrap()).contains("network namespace"));
    }
}
