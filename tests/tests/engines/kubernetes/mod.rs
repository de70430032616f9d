//! Kubernetes: containerd, driven by CRI as the kubelet drives it, with the files of `deploy/kubernetes`.

mod client;
mod manifest;
mod node;

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, iter, thread};

use k8s_cri::v1::{
    ContainerConfig, ContainerState, LinuxContainerResources, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use serde_json::Value;
use tempfile::TempDir;
use vmrt_tests::host_snapshot::HostSnapshot;
use vmrt_tests::runtime::is_vmrt;
use vmrt_tests::{TIMEOUT, eventually};

use crate::Test;
use crate::docker::CLEAN_TIMEOUT;
use crate::docker::network::page;
use client::Cri;
pub use node::make_network;
use node::{Node, PodCgroup};

pub const TESTS: &[Test] = &[
    ("a_pod_of_two_containers_runs_by_cri", a_pod_of_two_containers_runs_by_cri),
    ("containerd_2_reads_its_file_and_runs_the_pod", containerd_2_reads_its_file_and_runs_the_pod),
];

/// Prints the guest's memory in KiB.
const MEM_TOTAL: &str = "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";

/// Whether a line is state that containerd and its shim create for their first pod and keep, with any runtime.
fn is_containerd_state(line: &str) -> bool {
    let kept = [
        "/k8s.io",
        "/run/containerd/runc",
        "/io.containerd.grpc.v1.cri/containers",
        "/io.containerd.grpc.v1.cri/sandboxes",
        "/run/netns",
    ];
    line.starts_with("file ") && kept.iter().any(|directory| line.ends_with(directory))
}

/// The running example pod.
struct Pod<'a> {
    cri: &'a Cri,
    id: String,
    config: PodSandboxConfig,
    /// The ids of its containers, named as in the manifest.
    app: String,
    front: String,
    /// The directory that both containers have at `/volume`.
    volume: TempDir,
}

impl<'a> Pod<'a> {
    fn start(node: &'a Node, manifest: &Value, cgroup: &PodCgroup) -> Self {
        let class = manifest::read("kubernetes/runtimeclass.yaml");
        assert_eq!(manifest::text(manifest, "/spec/runtimeClassName"), manifest::text(&class, "/metadata/name"));
        let config = manifest::sandbox(manifest, &cgroup.name, node.logs());
        let cri = &node.cri;
        let volume = volume();
        let id = cri.run_pod(&config, manifest::text(&class, "/handler"));
        let [app, front] = <[ContainerConfig; 2]>::try_from(manifest::containers(manifest))
            .expect("two containers")
            .map(|container| cri.start(&id, with_volume(container, volume.path()), &config));
        Self { cri, id, config, app, front, volume }
    }

    /// Stops and removes the pod, and checks that containerd has no container of it.
    fn end(self) {
        self.cri.stop_pod(&self.id);
        assert!(!self.cri.is_ready(&self.id));
        self.cri.remove_pod(&self.id);
        assert_eq!(self.cri.containers(&self.id), Vec::<String>::new());
    }
}

fn with_volume(mut container: ContainerConfig, volume: &Path) -> ContainerConfig {
    let host_path = volume.display().to_string();
    container.mounts.push(Mount { container_path: "/volume".into(), host_path, ..Mount::default() });
    container
}

/// The kubelet's memory limit of a pod: its containers' limits, and the overhead of its class.
fn memory_of(manifest: &Value) -> i64 {
    let class = manifest::read("kubernetes/runtimeclass.yaml");
    let containers = manifest["spec"]["containers"].as_array().expect("containers").iter();
    let limits = containers.map(|container| manifest::bytes(container, "/resources/limits/memory"));
    limits.chain(iter::once(manifest::bytes(&class, "/overhead/podFixed/memory"))).sum()
}

/// Runs the pod of `deploy/` on a node, calls `work`, and checks that nothing of the pod is left.
fn with_pod(node: &Node, work: impl FnOnce(&Pod<'_>, &PodCgroup)) {
    let manifest = manifest::read("kubernetes/pod.yaml");
    let before = HostSnapshot::take();
    let cgroup = PodCgroup::new(memory_of(&manifest));
    let pod = Pod::start(node, &manifest, &cgroup);
    the_containers_share_the_loopback(&pod);
    the_containers_are_as_configured(&pod);
    a_container_ends_with_its_status_and_its_log(&pod, &manifest, node.logs());
    work(&pod, &cgroup);
    pod.end();
    drop(cgroup);
    before.assert_restored(CLEAN_TIMEOUT, is_containerd_state);
}

fn a_pod_of_two_containers_runs_by_cri() {
    let node = Node::of_debian();
    with_pod(&node, |pod, cgroup| {
        the_containers_share_a_volume(pod);
        an_exec_has_streams_and_a_status(pod);
        the_runtime_class_overhead_is_enough(pod, cgroup);
        a_container_is_stopped_and_removed(pod);
    });
    a_pod_has_the_size_of_its_limits(&node);
    namespaces_of_the_node_are_refused(&node);
}

fn containerd_2_reads_its_file_and_runs_the_pod() {
    let node = Node::of_containerd_2();
    with_pod(&node, |_, _| {});
    a_pod_has_the_size_of_its_limits(&node);
}

/// A pod without vmrt's annotations, whose limits the kubelet has added up.
fn a_pod_has_the_size_of_its_limits(node: &Node) {
    let manifest = manifest::read("kubernetes/pod.yaml");
    let before = HostSnapshot::take();
    let cgroup = PodCgroup::new(memory_of(&manifest) + (200 << 20));
    let mut config = manifest::sandbox(&manifest, &cgroup.name, node.logs());
    config.annotations.clear();
    config.linux.as_mut().expect("a sandbox of Linux").resources = Some(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 150_000,
        memory_limit_in_bytes: 200 << 20,
        ..LinuxContainerResources::default()
    });
    let cri = &node.cri;
    let id = cri.run_pod(&config, "vmrt");
    let container = manifest::containers(&manifest).pop().expect("a container");
    let container = cri.start(&id, container, &config);
    if is_vmrt() {
        assert_eq!(cri.output(&container, "nproc"), "2");
        let total = cri.output(&container, MEM_TOTAL).parse::<u64>().expect("a number");
        assert!((280 << 10..328 << 10).contains(&total), "{total} KiB of 328 MiB");
    }
    cri.stop_pod(&id);
    cri.remove_pod(&id);
    drop(cgroup);
    before.assert_restored(CLEAN_TIMEOUT, is_containerd_state);
}

/// Checks `hostNetwork`, `hostPID` and `hostIPC`.
fn namespaces_of_the_node_are_refused(node: &Node) {
    if !is_vmrt() {
        return;
    }
    let manifest = manifest::read("kubernetes/pod.yaml");
    let before = HostSnapshot::take();
    let cgroup = PodCgroup::new(memory_of(&manifest));
    let changes: [fn(&mut NamespaceOption); 3] = [
        |options| options.network = NamespaceMode::Node.into(),
        |options| options.pid = NamespaceMode::Node.into(),
        |options| options.ipc = NamespaceMode::Node.into(),
    ];
    for change in changes {
        let mut config = manifest::sandbox(&manifest, &cgroup.name, node.logs());
        let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        change(security.and_then(|security| security.namespace_options.as_mut()).expect("namespaces"));
        let refusal = node.cri.refusal(&config, "vmrt");
        assert!(refusal.contains("namespace is refused"), "{refusal}");
    }
    drop(cgroup);
    before.assert_restored(CLEAN_TIMEOUT, is_containerd_state);
}

fn volume() -> TempDir {
    let volume = tempfile::tempdir().expect("a directory for a volume");
    fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o777)).expect("everybody may write to it");
    volume
}

/// `app` serves the release of its kernel at 127.0.0.1. `front` reads it there and serves it at the pod's address.
fn the_containers_share_the_loopback(pod: &Pod<'_>) {
    let address = pod.cri.pod_status(&pod.id).network.expect("a network").ip;
    let served = page(&format!("{address}:8080"));
    assert_eq!(served.trim(), pod.cri.output(&pod.front, "uname -r"));
    let of_host = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the host's release");
    assert_eq!(served == of_host, !is_vmrt(), "the pod has a kernel of its own: {served}");
    let to_loopback = TcpStream::connect(format!("{address}:8081"));
    assert!(to_loopback.is_err(), "what listens at the loopback is the pod's alone");
}

fn the_containers_are_as_configured(pod: &Pod<'_>) {
    let ask = |script| pod.cri.output(&pod.front, script);
    assert_eq!(ask("hostname"), pod.config.hostname);
    assert!(ask("cat /etc/resolv.conf").contains(manifest::NAME_SERVER));
    assert_eq!(ask("cat /proc/sys/net/core/somaxconn"), "100");
    assert_eq!(ask("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max"), "67108864\n50000 100000");
    assert_eq!(ask("sed -n 's/^Seccomp:[[:space:]]*//p' /proc/1/status"), "2", "a filter");
    assert!(!ask("ps").contains("/tmp/app"), "processes of other containers are not seen");
    if is_vmrt() {
        assert_eq!(ask("nproc"), pod.config.annotations["dev.vmrt.vcpus"]);
        let total = ask(MEM_TOTAL).parse::<u64>().expect("a number");
        assert!((160 << 10..192 << 10).contains(&total), "{total} KiB of the annotation's 192 MiB");
    }
}

fn the_containers_share_a_volume(pod: &Pod<'_>) {
    let volume = pod.volume.path();
    fs::write(volume.join("host"), "of the host").expect("a file of the host");
    assert_eq!(pod.cri.output(&pod.app, "cat /volume/host; echo of app >/volume/app"), "of the host");
    assert_eq!(pod.cri.output(&pod.front, "cat /volume/app"), "of app");
    assert_eq!(fs::read_to_string(volume.join("app")).expect("a file of the pod"), "of app\n");
}

fn an_exec_has_streams_and_a_status(pod: &Pod<'_>) {
    let done = pod.cri.exec(&pod.app, "echo out; echo err >&2; exit 7");
    assert_eq!((done.stdout, done.stderr, done.exit_code), (b"out\n".to_vec(), b"err\n".to_vec(), 7));
}

fn a_container_ends_with_its_status_and_its_log(pod: &Pod<'_>, manifest: &Value, logs: &Path) {
    let mut config = manifest::containers(manifest).pop().expect("a container");
    config.metadata.as_mut().expect("a name").name = "short".into();
    config.command = ["sh", "-c", "echo out; echo err >&2; printf unfinished; exit 3"].map(str::to_string).to_vec();
    config.log_path = "short.log".into();
    let container = pod.cri.start(&pod.id, config, &pod.config);
    let status = pod.cri.await_end(&container);
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.started_at > status.created_at && status.finished_at > status.started_at, "{status:?}");
    let wanted = ["stderr F err", "stdout F out", "stdout P unfinished"];
    let mut lines = Vec::new();
    let written = eventually(TIMEOUT, || {
        lines = log(&logs.join("short.log"));
        lines.sort();
        (lines == wanted).then_some(())
    });
    assert!(written.is_some(), "{lines:?}");
    pod.cri.remove(&container);
}

/// The lines of a container's log, without timestamps.
fn log(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let (time, rest) = line.split_once(' ').unwrap_or_default();
        assert!(time.starts_with("20") && time.contains('T'), "no time: {line}");
        rest.to_string()
    };
    text.lines().map(line).collect()
}

/// Both containers use nearly all of their memory, in a cgroup with the kubelet's limit.
fn the_runtime_class_overhead_is_enough(pod: &Pod<'_>, cgroup: &PodCgroup) {
    let hold = "{ dd if=/dev/zero bs=56M count=1 | sleep 1000; } >/dev/null 2>&1 &";
    for container in [&pod.app, &pod.front] {
        pod.cri.output(container, hold);
        let held = eventually(TIMEOUT, || {
            let used = pod.cri.output(container, "cat /sys/fs/cgroup/memory.current").parse::<u64>().expect("a number");
            (used >= 56 << 20).then_some(())
        });
        assert!(held.is_some(), "the memory is in use");
    }
    assert!(cgroup.read("memory.events").contains("\noom_kill 0\n"), "{}", cgroup.read("memory.events"));
    let before = cpu_time(cgroup);
    thread::sleep(Duration::from_secs(10));
    eprintln!(
        "overhead of a pod: memory.peak {} of memory.max {}; {} us of CPU time in 10 s of idleness",
        cgroup.read("memory.peak").trim(),
        cgroup.read("memory.max").trim(),
        cpu_time(cgroup) - before
    );
    assert_eq!(pod.cri.status(&pod.front).state(), ContainerState::ContainerRunning);
}

/// CPU time that a pod has used, in microseconds.
fn cpu_time(cgroup: &PodCgroup) -> u64 {
    let stat = cgroup.read("cpu.stat");
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).expect("the CPU time");
    usage.parse().expect("a number")
}

fn a_container_is_stopped_and_removed(pod: &Pod<'_>) {
    // busybox's server does not handle SIGTERM, and as the first process of a container it is not ended by it.
    pod.cri.stop(&pod.app, 1);
    let status = pod.cri.await_end(&pod.app);
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    pod.cri.remove(&pod.app);
    assert_eq!(pod.cri.containers(&pod.id), std::slice::from_ref(&pod.front));
    assert_eq!(pod.cri.output(&pod.front, "echo goes on"), "goes on");
    assert!(pod.cri.is_ready(&pod.id));
}
