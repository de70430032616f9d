//! virtio-fs against the host's own file system and against QEMU with virtiofsd.
//!
//! All three use the same directory on the host's scratch disk. Each round boots a new guest, so its own
//! caches are empty. The host's page cache is warm for all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::reboot::{RebootMode, reboot};

use crate::report::{Benchmark, Entry, Report};
use crate::start::{microvm, run};
use crate::workload::Workload;
use crate::{BenchError, Settings};

/// The memory of both guests in MiB. It is sufficient to cache all data that is read.
const GUEST_MIB: u32 = 1024;

/// The path of the directory in vmrt's guest.
const IN_GUEST: &str = "/data";

/// The file in the directory to which a guest writes the times of its workloads.
const RESULTS: &str = "results.json";

/// Parts of the root file system that Debian's container images do not have either.
const LEFT_OUT: [&str; 6] =
    ["./dev/*", "./usr/share/doc", "./usr/share/info", "./usr/share/locale", "./usr/share/man", "./usr/share/zoneinfo"];

/// The number of huge pages that the host reserves.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

/// The QEMU guest's kernel command line.
const COMMAND_LINE: &str = "panic=-1 reboot=t quiet earlyprintk=serial,ttyS0,115200,keep \
                            rootfstype=virtiofs root=root rw init=/vmrt-bench";

/// The longest time for virtiofsd to create its socket.
const SOCKET_DEADLINE: Duration = Duration::from_secs(20);

type Times = Vec<f64>;

/// Runs every workload in one environment; `vmrt` comes first.
type Measure = fn(&Settings, &Path) -> Result<Times, BenchError>;
const MEASURED: [(&str, Measure); 3] = [("vmrt", in_vmrt), ("host", on_host), ("qemu+virtiofsd", in_qemu)];

/// Measures and adds to `report`.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<(), BenchError> {
    let data = prepare(settings)?;
    let mut samples = [const { Vec::<Times>::new() }; MEASURED.len()];
    // Fills the host's page cache.
    on_host(settings, &data)?;
    let outcome = rounds(settings, &data, &mut samples);
    // Report the completed rounds even if a later one failed.
    for (index, workload) in Workload::ALL.into_iter().enumerate() {
        let done = |rounds: &[Times]| rounds.iter().filter_map(|times| times.get(index).copied()).collect::<Vec<_>>();
        let measured = MEASURED.iter().zip(&samples).map(|((name, _), rounds)| (name, done(rounds)));
        let measured = measured.filter(|(_, samples)| !samples.is_empty());
        let entries = measured.map(|(name, samples)| Entry::new(name, samples)).collect();
        report.benchmarks.push(Benchmark { name: workload.title().into(), unit: "ms", entries });
    }
    outcome
}

fn rounds(settings: &Settings, data: &Path, samples: &mut [Vec<Times>]) -> Result<(), BenchError> {
    for round in 1..=settings.fs_rounds {
        for ((name, in_it), samples) in MEASURED.iter().zip(&mut *samples) {
            clean(data)?;
            let times = in_it(settings, data)?;
            eprintln!("bench: file system, round {round} of {}, {name}: {times:.0?} ms", settings.fs_rounds);
            samples.push(times);
        }
    }
    Ok(())
}

/// Fills the directory: the Debian tree, its archive, busybox and this program, which is also the QEMU guest's init.
fn prepare(settings: &Settings) -> Result<PathBuf, BenchError> {
    let data = settings.scratch.join("data");
    fs::create_dir_all(&data).map_err(BenchError::io("create", &data))?;
    let me = std::env::current_exe().map_err(BenchError::io("find", "this program"))?;
    for (from, name) in [(me, "vmrt-bench"), (settings.busybox.join("rootfs/bin/busybox"), "busybox")] {
        let to = data.join(name);
        fs::copy(&from, &to).map_err(BenchError::io("copy", &from))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).map_err(BenchError::io("chmod", to))?;
    }
    let archive = data.join("debian.tar");
    let left_out = LEFT_OUT.iter().map(|path| format!("--exclude={path}"));
    run(Command::new("tar").arg("-C").arg(&settings.debian_rootfs).args(left_out).arg("-cf").arg(&archive).arg("."))?;
    let tree = data.join("debian");
    fs::create_dir_all(&tree).map_err(BenchError::io("create", &tree))?;
    run(Command::new("tar").arg("-C").arg(&tree).arg("-xf").arg(&archive))?;
    for directory in ["dev", "proc", "sys", "tmp"] {
        let path = data.join(directory);
        fs::create_dir_all(&path).map_err(BenchError::io("create", path))?;
    }
    // A Rust program needs /dev/null if it starts without standard streams, as an init does.
    run(Command::new("mknod").arg(data.join("dev/null")).args(["c", "1", "3"]))?;
    run(Command::new("mknod").arg(data.join("dev/kmsg")).args(["c", "1", "11"]))?;
    Ok(data)
}

fn clean(data: &Path) -> Result<(), BenchError> {
    let unpacked = data.join("unpacked");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).map_err(BenchError::io("remove", unpacked))?;
    }
    Ok(())
}

fn on_host(_: &Settings, data: &Path) -> Result<Times, BenchError> {
    Workload::ALL.into_iter().map(|workload| Ok(workload.time(data)?.as_secs_f64() * 1e3)).collect()
}

fn in_vmrt(settings: &Settings, data: &Path) -> Result<Times, BenchError> {
    let bundle = vmrt_bundle(settings, data)?;
    run(Command::new("vmrt").args(["run", "--bundle"]).arg(bundle).arg("bench-fs"))?;
    take_results(data)
}

/// The busybox bundle with the directory mounted. Its process runs the same workloads as the QEMU guest's init.
fn vmrt_bundle(settings: &Settings, data: &Path) -> Result<PathBuf, BenchError> {
    let program = format!("{IN_GUEST}/vmrt-bench");
    let mount =
        serde_json::json!({"destination": IN_GUEST, "type": "bind", "source": data, "options": ["rbind", "rw"]});
    crate::start::bundle_running(settings, "fs", &[&program, "workloads", IN_GUEST], |config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.push(mount);
        }
        // The process drops the guest's page cache through /proc/sys.
        config["linux"]["readonlyPaths"] = serde_json::json!([]);
        config["annotations"]["dev.vmrt.memory"] = format!("{GUEST_MIB}M").into();
    })
}

/// Reads and removes the times of the workloads that a guest has run.
fn take_results(data: &Path) -> Result<Times, BenchError> {
    let path = data.join(RESULTS);
    let text = fs::read_to_string(&path).map_err(BenchError::io("read", &path))?;
    fs::remove_file(&path).map_err(BenchError::io("remove", path))?;
    let unreadable = |_| BenchError::Output { command: "guest".into(), expected: "times", output: text.clone() };
    let times: Times = serde_json::from_str(&text).map_err(unreadable)?;
    match Workload::ALL.get(times.len()) {
        Some(workload) => Err(BenchError::Unfinished(workload.title())),
        None => Ok(times),
    }
}

/// Runs the workloads in QEMU. The directory is the guest's root file system, and this program its init.
fn in_qemu(settings: &Settings, data: &Path) -> Result<Times, BenchError> {
    let console = settings.scratch.join("console.log");
    let _huge_pages = HugePages::reserve(GUEST_MIB / 2)?;
    run_qemu_guest(settings, data, &console)?;
    take_results(data).inspect_err(|_| eprintln!("{}", fs::read_to_string(&console).unwrap_or_default()))
}

/// Runs one guest until it ends or its time is over.
fn run_qemu_guest(settings: &Settings, data: &Path, console: &Path) -> Result<(), BenchError> {
    let socket = settings.scratch.join("virtiofsd.sock");
    let _ = fs::remove_file(&socket);
    let mut virtiofsd = virtiofsd(&settings.virtiofsd, &socket, data)?;
    let outcome = wait_for(&socket).and_then(|()| {
        let mut guest = qemu_guest(settings, &socket, console);
        guest.stdin(Stdio::null()).status().map_err(BenchError::io("start", guest.get_program()))
    });
    let _ = virtiofsd.kill();
    let _ = virtiofsd.wait();
    outcome.map(drop)
}

/// Huge pages of 2 MiB, reserved until dropped. vmrt's guests get transparent huge pages from the host. Memory that is
/// shared with a virtiofsd only gets reserved ones.
struct HugePages {
    before: String,
}

impl HugePages {
    fn reserve(more: u32) -> Result<Self, BenchError> {
        let read = || fs::read_to_string(HUGE_PAGES).map_err(BenchError::io("read", HUGE_PAGES));
        let number = |text: &str| text.trim().parse::<u32>().unwrap_or_default();
        let reserved = Self { before: read()? };
        let wanted = number(&reserved.before) + more;
        fs::write(HUGE_PAGES, wanted.to_string()).map_err(BenchError::io("write", HUGE_PAGES))?;
        // The kernel reports success even if it reserves fewer pages.
        if number(&read()?) < wanted {
            return Err(BenchError::io("reserve huge pages in", HUGE_PAGES)(std::io::ErrorKind::OutOfMemory.into()));
        }
        Ok(reserved)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = fs::write(HUGE_PAGES, &self.before) {
            eprintln!("bench: {HUGE_PAGES} stays as it is: {error}");
        }
    }
}

/// Starts QEMU's virtiofsd with its defaults.
fn virtiofsd(program: &Path, socket: &Path, data: &Path) -> Result<Child, BenchError> {
    let mut command = Command::new(program);
    command.arg(format!("--socket-path={}", socket.display())).arg("-o").arg(format!("source={}", data.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(BenchError::io("start", program))
}

fn wait_for(socket: &Path) -> Result<(), BenchError> {
    let begun = Instant::now();
    while !socket.exists() {
        if begun.elapsed() > SOCKET_DEADLINE {
            return Err(BenchError::io("wait for", socket)(std::io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The command of the QEMU guest. The guest writes only errors to `console`.
fn qemu_guest(settings: &Settings, socket: &Path, console: &Path) -> Command {
    let mut command = microvm(&settings.kernel, GUEST_MIB);
    command.arg("-object").arg(format!("memory-backend-memfd,id=ram,size={GUEST_MIB}M,share=on,hugetlb=on"));
    command.args(["-machine", "memory-backend=ram,isa-serial=on"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.arg("-chardev").arg(format!("socket,id=fs,path={}", socket.display()));
    // virtiofsd only supports the modern interface.
    command.args(["-global", "virtio-mmio.force-legacy=false", "-device", "vhost-user-fs-device,chardev=fs,tag=root"]);
    command.args(["-append", COMMAND_LINE]);
    command
}

/// Runs every workload in `directory`, each with an empty page cache of the guest, and writes the times there.
pub fn run_all(directory: &Path) -> Result<(), BenchError> {
    let mut times = Times::new();
    for workload in Workload::ALL {
        drop_caches()?;
        times.push(workload.time(directory)?.as_secs_f64() * 1e3);
        let path = directory.join(RESULTS);
        let json = serde_json::to_string(&times).map_err(std::io::Error::from);
        json.and_then(|json| fs::write(&path, json)).map_err(BenchError::io("write", path))?;
    }
    Ok(())
}

fn drop_caches() -> Result<(), BenchError> {
    let path = "/proc/sys/vm/drop_caches";
    fs::write(path, "3").map_err(BenchError::io("write", path))
}

/// Runs as PID 1 of the QEMU guest. Writes errors to the console.
pub fn run_as_init() -> ! {
    let mounted = nix::mount::mount(Some("proc"), "/proc", Some("proc"), nix::mount::MsFlags::empty(), None::<&str>);
    let mounted = mounted.map_err(|error| BenchError::io("mount", "/proc")(error.into()));
    if let Err(error) = mounted.and_then(|()| run_all(Path::new("/"))) {
        let _ = fs::write("/dev/kmsg", format!("<3>{error}"));
    }
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    unreachable!("the machine was reset");
}
