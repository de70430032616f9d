//! The duration of a `run` of busybox `true`, with vmrt and its peers. vmrt's machine starts from a template, or boots.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::report::{Benchmark, Entry, Report};
use crate::{BenchError, Settings};

/// The number of rounds that do not count: they fill the page cache.
pub const WARM_UP: u32 = 2;

/// Seconds after which a hanging QEMU is ended.
const HANGS_AFTER: &str = "900";

/// The default memory of vmrt's guest, and so of QEMU's, in MiB.
const GUEST_MIB: u32 = 512;

/// Runs `command` to its end, and returns an error if it fails.
pub fn run(command: &mut Command) -> Result<std::process::Output, BenchError> {
    let line = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(BenchError::io("start", command.get_program()))?;
    if output.status.success() {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().into();
    Err(BenchError::Command { command: line, status: output.status.to_string(), stderr })
}

/// QEMU's microvm machine with a minimal configuration: without the devices that vmrt's VMM does not have either.
pub fn microvm(kernel: &Path, memory_mib: u32) -> Command {
    let mut command = Command::new("timeout");
    command.args([HANGS_AFTER, "qemu-system-x86_64"]);
    command.args(["-M", "microvm,rtc=off,isa-serial=off,pcie=off,acpi=off,auto-kernel-cmdline=on"]);
    command.args(["-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", &memory_mib.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-nographic"]).arg("-kernel").arg(kernel);
    command
}

struct Peer {
    name: &'static str,
    command: Box<dyn Fn(u32) -> Command>,
}

fn oci(name: &'static str, program: &'static str, options: &[&OsStr], bundle: &Path) -> Peer {
    let bundle = bundle.to_owned();
    let options: Vec<OsString> = options.iter().map(|option| (*option).to_owned()).collect();
    let command = move |round| {
        let mut command = Command::new(program);
        command.args(&options).arg("run").arg("--bundle").arg(&bundle).arg(format!("bench-{round}"));
        command
    };
    Peer { name, command: Box::new(command) }
}

fn qemu(settings: &Settings) -> Peer {
    let (kernel, initramfs) = (settings.kernel.clone(), settings.initramfs.clone());
    let command = move |_| {
        let mut command = microvm(&kernel, GUEST_MIB);
        command.arg("-initrd").arg(&initramfs).args(["-append", "panic=-1 reboot=t quiet loglevel=0"]);
        command
    };
    Peer { name: "qemu-microvm", command: Box::new(command) }
}

/// Measures and adds to `report`.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<(), BenchError> {
    let bundle = bundle_running(settings, "start", &["true"], |_| ())?;
    let config = settings.scratch.join("boot.toml");
    fs::write(&config, "template = false\n").map_err(BenchError::io("write", &config))?;
    run(Command::new("vmrt").args(["template", "create"]))?;
    let boot = ["--config".as_ref(), config.as_os_str()];
    let peers = [
        oci("vmrt", "vmrt", &[], &bundle),
        oci("runc", "runc", &[], &bundle),
        oci("crun", "crun", &[], &bundle),
        oci("vmrt, cold", "vmrt", &boot, &bundle),
        qemu(settings),
    ];
    let mut samples = vec![Vec::new(); peers.len()];
    for round in 0..WARM_UP + settings.rounds {
        eprintln!("bench: start, round {} of {}", round + 1, WARM_UP + settings.rounds);
        for (peer, samples) in peers.iter().zip(&mut samples) {
            let begun = Instant::now();
            run(&mut (peer.command)(round))?;
            if round >= WARM_UP {
                samples.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    let entry = |index: usize| Entry::new(peers[index].name, samples[index].clone());
    for (name, order) in [("run of busybox true", [0, 1, 2, 3]), ("cold run of busybox true", [3, 1, 2, 4])] {
        report.benchmarks.push(Benchmark { name: name.into(), unit: "ms", entries: order.map(entry).into() });
    }
    let output = run(Command::new("vmrt").args(["run", "--timeline", "--bundle"]).arg(&bundle).arg("bench-timeline"))?;
    report.timeline = String::from_utf8_lossy(&output.stderr).into();
    Ok(())
}

/// A detached container, which runs until it is deleted.
pub struct Detached {
    runtime: OsString,
    /// Options of the runtime before the command.
    options: Vec<OsString>,
    id: &'static str,
}

impl Detached {
    /// Starts the container with the runtime of this name.
    pub fn start(runtime: &str, bundle: &Path, id: &'static str) -> Result<Self, BenchError> {
        Self::start_by(runtime.as_ref(), &[], bundle, id)
    }

    /// Starts the container with a program and options of its own. It keeps the streams of its command open, so they must not be pipes,
    /// whose end would not come.
    pub fn start_by(runtime: &Path, options: &[&OsStr], bundle: &Path, id: &'static str) -> Result<Self, BenchError> {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let container = Self { runtime: runtime.into(), options, id };
        let mut command = container.command("run");
        command.args(["--detach", "--bundle"]).arg(bundle).arg(id);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().map_err(BenchError::io("start", runtime))?;
        if status.success() {
            return Ok(container);
        }
        let (command, status) = (format!("{command:?}"), status.to_string());
        Err(BenchError::Command { command, status, stderr: String::new() })
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.runtime);
        command.args(&self.options).arg(name);
        command
    }

    /// A command that executes a further process in the container.
    pub fn exec(&self, args: &[&str]) -> Command {
        let mut command = self.command("exec");
        command.arg(self.id).args(args);
        command
    }

    /// A command that prints the container's state.
    pub fn state(&self) -> Command {
        let mut command = self.command("state");
        command.arg(self.id);
        command
    }

    /// Deletes the container.
    pub fn delete(self) -> Result<(), BenchError> {
        run(self.command("delete").args(["--force", self.id])).map(drop)
    }
}

/// A bundle with the busybox root file system and the process `args`. `edit` changes its configuration.
pub fn bundle_running(
    settings: &Settings,
    name: &str,
    args: &[&str],
    edit: impl FnOnce(&mut serde_json::Value),
) -> Result<PathBuf, BenchError> {
    let path = settings.busybox.join("config.json");
    let text = fs::read_to_string(&path).map_err(BenchError::io("read", &path))?;
    let mut config: serde_json::Value =
        serde_json::from_str(&text).map_err(std::io::Error::from).map_err(BenchError::io("parse", &path))?;
    config["process"]["args"] = args.into();
    config["process"]["terminal"] = false.into();
    config["root"]["path"] = settings.busybox.join("rootfs").to_string_lossy().into();
    edit(&mut config);
    let bundle = settings.scratch.join(name);
    fs::create_dir_all(&bundle).map_err(BenchError::io("create", &bundle))?;
    let path = bundle.join("config.json");
    fs::write(&path, config.to_string()).map_err(BenchError::io("write", path))?;
    Ok(bundle)
}
