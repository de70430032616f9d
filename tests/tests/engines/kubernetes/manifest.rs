//! Converts the manifests of `deploy/kubernetes` into the kubelet's requests.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, DnsConfig, ImageSpec, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, SecurityProfile,
};
use serde_json::Value;
use vmrt_tests::installed::deploy_file;

/// The CPU period of containers in microseconds.
const CPU_PERIOD: i64 = 100_000;

/// The cluster's name server, which no test uses.
pub const NAME_SERVER: &str = "10.96.0.10";

/// Reads a manifest.
pub fn read(file: &str) -> Value {
    let text = fs::read_to_string(deploy_file(file)).expect("a manifest");
    serde_saphyr::from_str(&text).expect("YAML")
}

/// The text at a JSON pointer of a manifest.
pub fn text<'a>(manifest: &'a Value, pointer: &str) -> &'a str {
    let value = manifest.pointer(pointer).and_then(Value::as_str);
    value.unwrap_or_else(|| panic!("no text at {pointer} of {manifest}"))
}

/// A quantity in thousandths: of bytes with Kubernetes's binary suffixes, or of CPUs.
pub fn thousandths(quantity: &str) -> i64 {
    let digits = quantity.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &quantity[digits.len()..] {
        "m" => 1,
        "" => 1000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        other => panic!("{other} is no unit of {quantity}"),
    };
    digits.parse::<i64>().expect("a number") * unit
}

/// The number of bytes at a JSON pointer of a manifest.
pub fn bytes(manifest: &Value, pointer: &str) -> i64 {
    thousandths(text(manifest, pointer)) / 1000
}

/// The network and System V IPC are the pod's; each container has its own pid namespace.
fn namespaces() -> NamespaceOption {
    let (network, pid) = (NamespaceMode::Pod.into(), NamespaceMode::Container.into());
    NamespaceOption { network, pid, ipc: NamespaceMode::Pod.into(), ..NamespaceOption::default() }
}

fn seccomp(pod: &Value) -> SecurityProfile {
    let profile = text(pod, "/spec/securityContext/seccompProfile/type");
    assert_eq!(profile, "RuntimeDefault");
    SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..SecurityProfile::default() }
}

/// A pod's sandbox.
pub fn sandbox(pod: &Value, cgroup: &str, logs: &Path) -> PodSandboxConfig {
    let name = text(pod, "/metadata/name").to_string();
    let annotations = pod["metadata"]["annotations"].as_object().expect("annotations").iter();
    let security_context = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces()),
        seccomp: Some(seccomp(pod)),
        ..LinuxSandboxSecurityContext::default()
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.clone(),
            uid: name.clone(),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: name,
        log_directory: logs.display().to_string(),
        dns_config: Some(DnsConfig { servers: vec![NAME_SERVER.into()], ..DnsConfig::default() }),
        annotations: annotations.map(|(key, value)| (key.clone(), value.as_str().expect("text").into())).collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup.into(),
            security_context: Some(security_context),
            sysctls: HashMap::from([("net.core.somaxconn".into(), "100".into())]),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

/// The containers of a pod.
pub fn containers(pod: &Value) -> Vec<ContainerConfig> {
    let containers = pod["spec"]["containers"].as_array().expect("containers");
    containers.iter().map(|container| self::container(pod, container)).collect()
}

/// One container of a pod.
fn container(pod: &Value, manifest: &Value) -> ContainerConfig {
    let name = text(manifest, "/name");
    let command = manifest["command"].as_array().expect("a command").iter();
    let quota = thousandths(text(manifest, "/resources/limits/cpu")) * CPU_PERIOD / 1000;
    let resources = LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota,
        memory_limit_in_bytes: bytes(manifest, "/resources/limits/memory"),
        ..LinuxContainerResources::default()
    };
    let security_context = LinuxContainerSecurityContext {
        namespace_options: Some(namespaces()),
        seccomp: Some(seccomp(pod)),
        ..LinuxContainerSecurityContext::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: text(manifest, "/image").into(), ..ImageSpec::default() }),
        command: command.map(|word| word.as_str().expect("a word").into()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig { resources: Some(resources), security_context: Some(security_context) }),
        ..ContainerConfig::default()
    }
}
