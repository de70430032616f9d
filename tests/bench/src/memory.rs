//! The cost of an idle sandbox: VM exits until it runs, memory of the VMM process without its guest's RAM, and memory of the
//! guest's kernel and agent.

use std::fs;
use std::process::Command;

use crate::report::{Figure, Report};
use crate::start::{Detached, bundle_running, run};
use crate::{BenchError, Settings};

/// Mappings of at least this size in KiB are guest RAM: all others in the VMM are far smaller.
const GUEST_RAM_KIB: u64 = 64 << 10;

/// Measures and adds to `report`.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<(), BenchError> {
    let bundle = bundle_running(settings, "idle", &["sleep", "1000"], |_| ())?;
    let idle = Detached::start("vmrt", &bundle, "bench-idle")?;
    measure_idle(&idle, report)?;
    idle.delete()
}

fn measure_idle(idle: &Detached, report: &mut Report) -> Result<(), BenchError> {
    count_exits(report)?;
    let (own, ram) = pss(&smaps(pid_of(idle)?)?);
    let meminfo = text_of(&mut idle.exec(&["cat", "/proc/meminfo"]))?;
    let used = field(&meminfo, "MemTotal:").saturating_sub(field(&meminfo, "MemAvailable:"));
    for (name, kib) in [
        ("VMM process PSS without guest RAM", own),
        ("guest RAM the host has given an idle sandbox", ram),
        ("memory the guest's kernel and agent use (MemTotal - MemAvailable)", used),
    ] {
        report.figures.push(Figure { name: name.into(), ..mib(kib) });
    }
    Ok(())
}

/// The process id of a container's VMM.
pub fn pid_of(container: &Detached) -> Result<u64, BenchError> {
    let state = text_of(&mut container.state())?;
    let pid = serde_json::from_str::<serde_json::Value>(&state).ok().and_then(|state| state["pid"].as_u64());
    pid.ok_or(BenchError::Output { command: "vmrt state".into(), expected: "pid", output: state })
}

/// The PSS of a VMM without its guest's RAM, as a figure without a name.
pub fn pss_of_vmm(pid: u64) -> Result<Figure, BenchError> {
    Ok(mib(pss(&smaps(pid)?).0))
}

/// The PSS of a process that has no guest, as a figure without a name.
pub fn pss_of_process(pid: u64) -> Result<Figure, BenchError> {
    let (own, large) = pss(&smaps(pid)?);
    Ok(mib(own + large))
}

fn smaps(pid: u64) -> Result<String, BenchError> {
    let path = format!("/proc/{pid}/smaps");
    fs::read_to_string(&path).map_err(BenchError::io("read", &path))
}

#[expect(clippy::cast_precision_loss, reason = "KiB of a process are far below 2^52")]
fn mib(kib: u64) -> Figure {
    Figure { name: String::new(), value: kib as f64 / 1024.0, unit: "MiB" }
}

/// Reads KVM's count of exits, which is that of all running machines. This is the only one.
fn count_exits(report: &mut Report) -> Result<(), BenchError> {
    let path = "/sys/kernel/debug/kvm/exits";
    let Ok(text) = fs::read_to_string(path) else {
        eprintln!("bench: no {path} here: VM exits are not counted");
        return Ok(());
    };
    let value = text.trim().parse().map_err(|_| BenchError::Output {
        command: path.into(),
        expected: "number",
        output: text.clone(),
    })?;
    report.figures.push(Figure { name: "VM exits until a container runs".into(), value, unit: "exits" });
    Ok(())
}

fn text_of(command: &mut Command) -> Result<String, BenchError> {
    Ok(String::from_utf8_lossy(&run(command)?.stdout).into())
}

/// The PSS in KiB of all mappings except guest RAM, and of guest RAM.
fn pss(smaps: &str) -> (u64, u64) {
    let (mut own, mut ram, mut size) = (0, 0, 0);
    for line in smaps.lines() {
        if line.starts_with("Size:") {
            size = field(line, "Size:");
        } else if line.starts_with("Pss:") {
            *(if size >= GUEST_RAM_KIB { &mut ram } else { &mut own }) += field(line, "Pss:");
        }
    }
    (own, ram)
}

/// The number after `key` at the start of a line; 0 if there is no such line.
fn field(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_mappings_count_as_guest_ram() {
        let smaps = "a\nSize: 524288 kB\nPss: 30000 kB\nb\nSize: 100 kB\nPss: 40 kB\nc\nSize: 8 kB\nPss: 2 kB\n";
        assert_eq!(pss(smaps), (42, 30000));
    }
}
