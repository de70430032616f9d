//! A process of the guest, from its line of `/proc/PID/stat`.

use std::time::{Duration, SystemTime};

use agent::GuestProcess;

/// The unit of times in `/proc`, in all of Linux's interfaces: a hundredth of a second.
const TICK_MS: u64 = 10;

/// What the columns show.
#[derive(Debug)]
pub(super) struct Process {
    /// In the container, as are the parent's, the group's and the session's; 0 for what is outside.
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    pub(super) uid: u32,
    pub(super) name: String,
    pub(super) arguments: String,
    pub(super) state: char,
    /// Device number; 0 for none.
    pub(super) terminal: u64,
    pub(super) nice: i64,
    pub(super) threads: u64,
    pub(super) cpu: Duration,
    /// How long it has been there.
    pub(super) age: Duration,
    /// Bytes.
    pub(super) virtual_size: u64,
    /// Pages of 4096 bytes.
    pub(super) resident: u64,
    /// Its pid in the guest.
    outer: i32,
}

impl Process {
    /// `None` where the line is none of `/proc/PID/stat`.
    pub(super) fn new(process: &GuestProcess, uptime_ms: u64) -> Option<Self> {
        let (head, fields) = process.stat.rsplit_once(") ")?;
        let (outer, name) = head.split_once(" (")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // Numbered as in proc(5), where the state is field 3.
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
            outer: outer.parse().ok()?,
        })
    }

    /// When it began, by this host's clock.
    pub(super) fn started(&self) -> SystemTime {
        SystemTime::now().checked_sub(self.age).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// CPU time in percent of its age.
    pub(super) fn cpu_percent(&self) -> f64 {
        if self.age.is_zero() { 0.0 } else { 100.0 * self.cpu.as_secs_f64() / self.age.as_secs_f64() }
    }
}

/// Gives relatives the pids they have in the container.
pub(super) fn name_parents(all: &mut [Process]) {
    let names: Vec<(i32, i32)> = all.iter().map(|process| (process.outer, process.pid)).collect();
    let inner = |outer| names.iter().find(|(pid, _)| *pid == outer).map_or(0, |(_, inner)| *inner);
    for process in all {
        process.parent = inner(process.parent);
        process.group = inner(process.group);
        process.session = inner(process.session);
    }
}

/// It ends up on a terminal, and a guest may say anything.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}
