//! A client of CRI, the kubelet's interface to containerd.

use std::path::Path;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest, CreateContainerRequest,
    ExecSyncRequest, ExecSyncResponse, ImageSpec, ImageStatusRequest, ListContainersRequest, PodSandboxConfig,
    PodSandboxState, PodSandboxStatus, PodSandboxStatusRequest, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use vmrt_tests::{TIMEOUT, eventually};

/// A connection to containerd. Methods panic if a call fails or does not answer in time.
pub struct Cri {
    executor: Runtime,
    channel: Channel,
}

impl Cri {
    pub fn connect(socket: &Path) -> Self {
        let executor = Builder::new_current_thread().enable_all().build().expect("an executor");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("an address");
        let channel = executor.block_on(endpoint.connect()).expect("containerd answers");
        Self { executor, channel }
    }

    fn call<T>(&self, call: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<Response<T>, Status>) -> T {
        let client = RuntimeServiceClient::new(self.channel.clone());
        let answer = self.executor.block_on(async { timeout(TIMEOUT, call(client)).await });
        answer.expect("CRI answers in time").expect("CRI does what it is asked for").into_inner()
    }

    /// Waits until CRI knows an image that was loaded by another client.
    pub fn await_image(&self, image: &str) {
        let found = eventually(TIMEOUT, || {
            let image = Some(ImageSpec { image: image.into(), ..ImageSpec::default() });
            let mut client = ImageServiceClient::new(self.channel.clone());
            let answer = self.executor.block_on(client.image_status(ImageStatusRequest { image, verbose: false }));
            answer.expect("CRI knows images").into_inner().image
        });
        assert!(found.is_some(), "{image} was not seen");
    }

    /// Starts a pod's sandbox with the runtime of this name, and returns its id.
    pub fn run_pod(&self, config: &PodSandboxConfig, runtime_handler: &str) -> String {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: runtime_handler.into() };
        self.call(async |mut client| client.run_pod_sandbox(request).await).pod_sandbox_id
    }

    /// Asks for a sandbox that is refused, and returns the error message.
    pub fn refusal(&self, config: &PodSandboxConfig, runtime_handler: &str) -> String {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: runtime_handler.into() };
        let mut client = RuntimeServiceClient::new(self.channel.clone());
        let answer = self.executor.block_on(client.run_pod_sandbox(request));
        answer.expect_err("the sandbox is refused").message().to_string()
    }

    pub fn pod_status(&self, pod: &str) -> PodSandboxStatus {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.into(), verbose: false };
        self.call(async |mut client| client.pod_sandbox_status(request).await).status.expect("a status")
    }

    pub fn is_ready(&self, pod: &str) -> bool {
        self.pod_status(pod).state() == PodSandboxState::SandboxReady
    }

    pub fn stop_pod(&self, pod: &str) {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.into() };
        self.call(async |mut client| client.stop_pod_sandbox(request).await);
    }

    pub fn remove_pod(&self, pod: &str) {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.into() };
        self.call(async |mut client| client.remove_pod_sandbox(request).await);
    }

    /// Creates and starts a container in a pod, and returns its id.
    pub fn start(&self, pod: &str, config: ContainerConfig, sandbox_config: &PodSandboxConfig) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let container_id = self.call(async |mut client| client.create_container(request).await).container_id;
        let request = StartContainerRequest { container_id: container_id.clone() };
        self.call(async |mut client| client.start_container(request).await);
        container_id
    }

    pub fn status(&self, container: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: container.into(), verbose: false };
        self.call(async |mut client| client.container_status(request).await).status.expect("a status")
    }

    /// Waits for the end of a container, and returns its status.
    pub fn await_end(&self, container: &str) -> ContainerStatus {
        let ended = eventually(TIMEOUT, || {
            Some(self.status(container)).filter(|status| status.state() == ContainerState::ContainerExited)
        });
        ended.unwrap_or_else(|| panic!("it does not end: {:?}", self.status(container)))
    }

    /// Runs a shell script in a container.
    pub fn exec(&self, container: &str, script: &str) -> ExecSyncResponse {
        let cmd = ["sh", "-c", script].map(str::to_string).to_vec();
        let timeout = i64::try_from(TIMEOUT.as_secs()).expect("seconds");
        let request = ExecSyncRequest { container_id: container.into(), cmd, timeout };
        self.call(async |mut client| client.exec_sync(request).await)
    }

    /// Runs a shell script that must succeed, and returns its output.
    pub fn output(&self, container: &str, script: &str) -> String {
        let done = self.exec(container, script);
        assert_eq!(done.exit_code, 0, "{script}: {done:?}");
        String::from_utf8(done.stdout).expect("text").trim().to_string()
    }

    /// Asks a container to end, and kills it after `timeout` seconds.
    pub fn stop(&self, container: &str, timeout: i64) {
        let request = StopContainerRequest { container_id: container.into(), timeout };
        self.call(async |mut client| client.stop_container(request).await);
    }

    pub fn remove(&self, container: &str) {
        let request = RemoveContainerRequest { container_id: container.into() };
        self.call(async |mut client| client.remove_container(request).await);
    }

    /// The ids of a pod's containers.
    pub fn containers(&self, pod: &str) -> Vec<String> {
        let filter = Some(ContainerFilter { pod_sandbox_id: pod.into(), ..ContainerFilter::default() });
        let list = self.call(async |mut client| client.list_containers(ListContainersRequest { filter }).await);
        list.containers.into_iter().map(|container| container.id).collect()
    }
}
