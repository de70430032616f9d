//! A process of the guest, parsed from its `/proc/PID/stat`, proc_pid_stat(5).

use std::time::{Duration, SystemTime};

use agent::GuestProcess;

/// Length of a clock tick in `/proc` (`USER_HZ`), in milliseconds.
const TICK_MS: u64 = 10;

/// The data of a process that columns show.
#[derive(Debug)]
pub(super) struct Process {
    /// Pid in the container's pid namespace, like `parent`, `group` and `session`. A process outside the namespace has 0.
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    pub(super) uid: u32,
    pub(super) name: String,
    pub(super) arguments: String,
    pub(super) state: char,
    /// Device number of the controlling terminal; 0 for none.
    pub(super) terminal: u64,
    pub(super) nice: i64,
    pub(super) threads: u64,
    pub(super) cpu: Duration,
    /// Time since the start of the process.
    pub(super) age: Duration,
    /// Size of the virtual memory, in bytes.
    pub(super) virtual_size: u64,
    /// Size of the resident memory, in pages of 4096 bytes.
    pub(super) resident: u64,
    /// Pid in the guest's initial pid namespace.
    guest_pid: i32,
}

impl Process {
    /// Parses a process; `None` if its line is invalid. `uptime_ms` is the guest's uptime, in milliseconds.
    pub(super) fn new(process: &GuestProcess, uptime_ms: u64) -> Option<Self> {
        let (head, fields) = process.stat.rsplit_once(") ")?;
        let (guest_pid, name) = head.split_once(" (")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // Fields are numbered as in proc_pid_stat(5), where the state is field 3.
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = |number| Some(Duration::from_millis(field(number)?.parse::<u64>().ok()?.checked_mul(TICK_MS)?));
        let age = Duration::from_millis(uptime_ms).saturating_sub(ticks(22)?);
        Some(Self {
            pid: process.pid,
            parent: field(4)?.parse().ok()?,
            group: field(5)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            uid: process.uid,
            name: printable(name),
            arguments: printable(&process.arguments),
            state: field(3)?.chars().next().filter(char::is_ascii_alphabetic)?,
            terminal: field(7)?.parse().ok()?,
            nice: field(19)?.parse().ok()?,
            threads: field(20)?.parse().ok()?,
            cpu: ticks(14)? + ticks(15)?,
            age,
            virtual_size: field(23)?.parse().ok()?,
            resident: field(24)?.parse().ok()?,
            guest_pid: guest_pid.parse().ok()?,
        })
    }

    /// Start time of the process, by the host's clock.
    pub(super) fn started(&self) -> SystemTime {
        SystemTime::now().checked_sub(self.age).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// CPU time in percent of the time since the start.
    pub(super) fn cpu_percent(&self) -> f64 {
        if self.age.is_zero() { 0.0 } else { 100.0 * self.cpu.as_secs_f64() / self.age.as_secs_f64() }
    }
}

/// Replaces the pids of parents, groups and sessions, which are the guest's, by those in the container.
pub(super) fn map_to_container_pids(all: &mut [Process]) {
    let pids: Vec<(i32, i32)> = all.iter().map(|process| (process.guest_pid, process.pid)).collect();
    let container_pid = |guest_pid| pids.iter().find(|(pid, _)| *pid == guest_pid).map_or(0, |(_, pid)| *pid);
    for process in all {
        process.parent = container_pid(process.parent);
        process.group = container_pid(process.group);
        process.session = container_pid(process.session);
    }
}

/// Replaces control characters: a guest may put escape sequences for the user's terminal into a name.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}
