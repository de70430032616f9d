//! The container that all workloads share.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;
use vmrt_tests::bundle::{Bundle, templates};
use vmrt_tests::daemons::load_modules;
use vmrt_tests::runtime::{CommandResult, RunningCommand, Runtime, program};
use vmrt_tests::{TIMEOUT, eventually};

/// The longest time for one workload on a slow host.
const WORKLOAD_TIMEOUT: Duration = Duration::from_secs(1200);

static MACHINE: OnceLock<Machine> = OnceLock::new();

/// The content of a file in this directory.
macro_rules! script {
    ($name:literal) => {
        include_str!($name)
    };
}
pub(crate) use script;

/// The running container. A thread owns it, and removes it when the sender is dropped.
pub struct Machine {
    id: String,
    root: PathBuf,
    owner: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl Machine {
    /// The container, started by the first call.
    pub fn get() -> &'static Self {
        MACHINE.get_or_init(Self::start)
    }

    /// Removes the container, if it was started.
    pub fn stop() {
        let owner = MACHINE.get().and_then(|machine| machine.owner.lock().expect("no test holds it").take());
        if let Some((stop, thread)) = owner {
            drop(stop);
            thread.join().expect("the container left nothing behind");
        }
    }

    fn start() -> Self {
        load_modules();
        let (stop, stopped) = channel();
        let (started_sender, started) = channel();
        let thread = thread::spawn(move || run_container(&started_sender, &stopped));
        let (id, root) = started.recv().expect("the container started");
        Self { id, root, owner: Mutex::new(Some((stop, thread))) }
    }

    /// Runs a script in the container.
    pub fn bash(&self, script: &str, arguments: &[&str]) -> CommandResult {
        let mut command = Command::new(program());
        command.arg("--root").arg(&self.root).args(["exec", &self.id, "bash", "-c", script, "bash"]).args(arguments);
        let done = RunningCommand::start(&mut command, None).end_within(WORKLOAD_TIMEOUT);
        if done.code == 255 {
            // The runtime itself failed: the machine's log contains the reason.
            let log = fs::read_to_string(self.root.join(&self.id).join("vmm.log")).unwrap_or_default();
            eprintln!("{log}");
        }
        done
    }
}

/// Starts the container, sends its id and state directory to `started`, and removes it when the sender of `stopped` is dropped.
fn run_container(started: &Sender<(String, PathBuf)>, stopped: &Receiver<()>) {
    let runtime = Runtime::new();
    let volume = tempfile::tempdir().expect("a directory for a volume");
    let bundle = Bundle::debian(["bash", "-c", script!("first-process.sh")])
        .privileged()
        .with("/annotations/dev.vmrt.memory", json!("3G"))
        .with("/annotations/dev.vmrt.vcpus", json!("2"))
        .bind(volume.path(), "/volume", &["rw"])
        .bind(&templates().join("busybox/rootfs"), "/busybox", &["ro"]);
    let container = runtime.start_container(&bundle);
    // Wait until the first process has left the top cgroup: a further process there would prevent it from enabling controllers.
    let ready = eventually(TIMEOUT, || volume.path().join("ready").exists().then_some(()));
    assert!(ready.is_some(), "the first process is not ready");
    started.send((container.id.clone(), runtime.root().into())).expect("the test waits");
    stopped.recv().expect_err("nothing is sent");
}
