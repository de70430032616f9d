//! The one container that all workloads share.

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

/// How long one workload may take in a slow host.
const WORKLOAD_TIMEOUT: Duration = Duration::from_secs(1200);

static MACHINE: OnceLock<Machine> = OnceLock::new();

/// A file beside this one.
macro_rules! script {
    ($name:literal) => {
        include_str!($name)
    };
}
pub(crate) use script;

/// The container, which a thread of its own keeps.
pub struct Machine {
    id: String,
    root: PathBuf,
    keeper: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl Machine {
    /// It, started by the first who asks.
    pub fn get() -> &'static Self {
        MACHINE.get_or_init(Self::start)
    }

    /// Ends it, if there is one.
    pub fn stop() {
        let keeper = MACHINE.get().and_then(|machine| machine.keeper.lock().expect("no test holds it").take());
        if let Some((end, keeper)) = keeper {
            drop(end);
            keeper.join().expect("the container left nothing behind");
        }
    }

    fn start() -> Self {
        load_modules();
        let (end, until) = channel();
        let (tell, told) = channel();
        let keeper = thread::spawn(move || keep(&tell, &until));
        let (id, root) = told.recv().expect("the container started");
        Self { id, root, keeper: Mutex::new(Some((end, keeper))) }
    }

    /// Runs a script in it.
    pub fn bash(&self, script: &str, arguments: &[&str]) -> CommandResult {
        let mut command = Command::new(program());
        command.arg("--root").arg(&self.root).args(["exec", &self.id, "bash", "-c", script, "bash"]).args(arguments);
        let done = RunningCommand::start(&mut command, None).end_within(WORKLOAD_TIMEOUT);
        if done.code == 255 {
            // The runtime's own failure: the machine's log says what happened to it.
            let log = fs::read_to_string(self.root.join(&self.id).join("vmm.log")).unwrap_or_default();
            eprintln!("{log}");
        }
        done
    }
}

/// Starts the container, says where it is, and removes it when nobody is there any more who could say when.
fn keep(tell: &Sender<(String, PathBuf)>, until: &Receiver<()>) {
    let runtime = Runtime::new();
    let volume = tempfile::tempdir().expect("a directory for a volume");
    let bundle = Bundle::debian(["bash", "-c", script!("first-process.sh")])
        .privileged()
        .with("/annotations/dev.vmrt.memory", json!("3G"))
        .with("/annotations/dev.vmrt.vcpus", json!("2"))
        .bind(volume.path(), "/volume", &["rw"])
        .bind(&templates().join("busybox/rootfs"), "/busybox", &["ro"]);
    let container = runtime.start_container(&bundle);
    // A process beside the first one, before that has left the cgroup's top, would keep the top from handing controllers down.
    let ready = eventually(TIMEOUT, || volume.path().join("ready").exists().then_some(()));
    assert!(ready.is_some(), "the first process did not come so far");
    tell.send((container.id.clone(), runtime.root().into())).expect("the test waits");
    until.recv().expect_err("nothing is sent");
}
