//! The parts of a node that pods need: containerd, images, a network, and cgroups.

use std::path::{Path, PathBuf};
use std::{env, fs, thread};

use tempfile::TempDir;
use vmrt_tests::daemons::{Containerd, PATH_OF_IMAGES};
use vmrt_tests::installed::copy_deployed;
use vmrt_tests::runtime::new_id;

use super::client::Cri;
use crate::daemons::{IMAGE, daemons};

/// The network of the pods: a pair of interfaces for each pod, one of them on the host. Nothing remains after a pod.
const NETWORK: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [{
    "type": "ptp",
    "ipam": {"type": "host-local", "subnet": "10.85.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}
  }]
}"#;

/// The name of the image for sandboxes, which only waits.
const PAUSE: &str = "pause";

/// Writes the network's configuration, which containerd reads at its start.
pub fn make_network() {
    let directory = Path::new("/etc/cni/net.d");
    fs::create_dir_all(directory).expect("a directory for networks");
    fs::write(directory.join("10-pods.conflist"), NETWORK).expect("the pods' network");
}

/// A containerd with the images, and a client of it.
pub struct Node {
    pub cri: Cri,
    logs: TempDir,
    /// The node's own containerd and its directories, unless it uses the shared one.
    own: Option<(Containerd, [TempDir; 2])>,
}

impl Node {
    /// Debian's containerd 1.6, which reads the file for its version.
    pub fn of_debian() -> Self {
        Self::with_images(&daemons().containerd)
    }

    /// A containerd 2, which reads its file of `deploy/` from the place where users install it.
    pub fn of_containerd_2() -> Self {
        copy_deployed("kubernetes/containerd-2.toml", "/etc/containerd/conf.d/vmrt.toml");
        let config = Path::new("/etc/containerd/config.toml");
        fs::write(config, "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n").expect("its configuration");
        let programs = env::var("VMRT_NEWER_CONTAINERD").expect("tests/e2e names the programs of containerd 2");
        let storage = tempfile::tempdir().expect("a directory for images");
        let run = tempfile::Builder::new().prefix("engines").tempdir_in("/run").expect("a directory for sockets");
        let containerd = Containerd::start(Some(&programs), config, storage.path(), run.path());
        let mut node = Self::with_images(&containerd);
        node.own = Some((containerd, [storage, run]));
        node
    }

    /// Loads two images: that of the tests, and that of sandboxes under the name that containerd uses.
    fn with_images(containerd: &Containerd) -> Self {
        let storage = daemons().storage();
        let [rootfs, archive] = ["rootfs.tar", "images.tar"].map(|name| storage.join(name).display().to_string());
        let changes = ["--change", PATH_OF_IMAGES, "--change", "CMD [\"sleep\", \"100000\"]"];
        daemons().docker(&[&["import"], &changes[..], &[&rootfs, PAUSE]].concat()).ok();
        daemons().docker(&["save", "--output", &archive, IMAGE, PAUSE]).ok();
        let images = |words: &[&str]| containerd.ctr(&[&["--namespace", "k8s.io", "images"], words].concat()).ok();
        let of_sandboxes = containerd.sandbox_image();
        images(&["import", &archive]);
        images(&["tag", "--force", &format!("docker.io/library/{PAUSE}:latest"), &of_sandboxes]);
        let cri = Cri::connect(containerd.socket());
        for image in [IMAGE, &of_sandboxes] {
            cri.await_image(image);
        }
        Self { cri, logs: tempfile::tempdir().expect("a directory for logs"), own: None }
    }

    /// The directory of the containers' logs.
    pub fn logs(&self) -> &Path {
        self.logs.path()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some((containerd, _)) = &self.own {
            containerd.stop();
        }
    }
}

/// A pod's cgroup, as the kubelet makes it; removed when dropped.
pub struct PodCgroup {
    /// Its path from the root of the hierarchy.
    pub name: String,
}

impl PodCgroup {
    pub fn new(memory: i64) -> Self {
        let cgroup = Self { name: format!("/{}", new_id()) };
        fs::create_dir(cgroup.file("")).expect("a cgroup");
        fs::write(cgroup.file("memory.max"), memory.to_string()).expect("a limit");
        cgroup
    }

    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.file(file)).expect("a file of the cgroup")
    }

    fn file(&self, file: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(&self.name[1..]).join(file)
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        let removed = fs::remove_dir(self.file(""));
        assert!(thread::panicking() || removed.is_ok(), "{}: {removed:?}", self.name);
    }
}
