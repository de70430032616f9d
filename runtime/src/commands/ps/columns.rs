//! The columns of the table of processes, and the options of ps(1) that choose them.

use std::time::Duration;

use super::process::Process;
use crate::base::timestamp;

/// A column.
#[derive(Clone, Copy)]
pub(super) struct Column {
    names: &'static [&'static str],
    pub(super) title: &'static str,
    /// Least width, as in ps(1).
    pub(super) width: usize,
    pub(super) right: bool,
    pub(super) cell: fn(&Process) -> String,
}

const fn left(
    names: &'static [&'static str],
    title: &'static str,
    width: usize,
    cell: fn(&Process) -> String,
) -> Column {
    Column { names, title, width, right: false, cell }
}

const fn right(
    names: &'static [&'static str],
    title: &'static str,
    width: usize,
    cell: fn(&Process) -> String,
) -> Column {
    Column { names, title, width, right: true, cell }
}

/// Every column, the more usual of two of the same name first.
const COLUMNS: [Column; 22] = [
    left(&["user", "euser", "uname"], "USER", 8, user),
    left(&["uidname"], "UID", 8, user),
    right(&["uid", "euid"], "UID", 5, |process| process.uid.to_string()),
    right(&["pid", "tgid"], "PID", 7, |process| process.pid.to_string()),
    right(&["ppid"], "PPID", 7, |process| process.parent.to_string()),
    right(&["pgid", "pgrp"], "PGID", 7, |process| process.group.to_string()),
    right(&["sid", "sess", "session"], "SID", 7, |process| process.session.to_string()),
    right(&["c"], "C", 2, |process| format!("{:.0}", process.cpu_percent().min(99.0))),
    right(&["pcpu", "%cpu"], "%CPU", 4, |process| format!("{:.1}", process.cpu_percent())),
    left(&["stime", "start", "start_time"], "STIME", 5, |process| timestamp::time_of_day(process.started())),
    right(&["etime"], "ELAPSED", 11, |process| clock(process.age)),
    right(&["time", "cputime"], "TIME", 8, |process| clock(process.cpu)),
    right(&["bsdtime"], "TIME", 6, bsd_time),
    left(&["tty", "tt", "tname"], "TTY", 8, terminal),
    left(&["stat", "state", "s"], "STAT", 4, |process| process.state.to_string()),
    right(&["ni", "nice"], "NI", 3, |process| process.nice.to_string()),
    right(&["nlwp", "thcount"], "NLWP", 4, |process| process.threads.to_string()),
    right(&["vsz", "vsize"], "VSZ", 6, |process| (process.virtual_size / 1024).to_string()),
    right(&["rss", "rssize", "rsz"], "RSS", 5, |process| process.resident.saturating_mul(4).to_string()),
    left(&["comm", "ucmd", "ucomm"], "COMMAND", 0, |process| process.name.clone()),
    left(&["args", "command"], "COMMAND", 0, command),
    left(&["cmd"], "CMD", 0, command),
];

const FULL: [&str; 8] = ["uidname", "pid", "ppid", "c", "stime", "tty", "time", "cmd"];
const SHORT: [&str; 4] = ["pid", "tty", "time", "cmd"];
const BSD: [&str; 5] = ["pid", "tty", "stat", "bsdtime", "command"];
const USER: [&str; 10] = ["user", "pid", "%cpu", "vsz", "rss", "tty", "stat", "stime", "bsdtime", "command"];

/// The columns that options of ps(1) ask for. All processes of the container are shown whatever they select; what else
/// an option does, this table cannot: the option's name is the error.
pub(super) fn of(options: &[String]) -> Result<Vec<Column>, String> {
    let (mut chosen, mut letters) = (Vec::new(), String::new());
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let (flags, list) = take_apart(option)?;
        letters.push_str(flags);
        let list = match list {
            Some("") => Some(rest.next().ok_or_else(|| option.clone())?.as_str()),
            list => list,
        };
        for name in list.iter().flat_map(|list| list.split([',', ' '])).filter(|name| !name.is_empty()) {
            chosen.push(named(name.trim_end_matches('='))?);
        }
    }
    if chosen.is_empty() { usual(&letters).iter().map(|name| named(name)).collect() } else { Ok(chosen) }
}

/// The flags of one argument, and the list of columns behind `-o`: empty where that is the next argument.
fn take_apart(option: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(list) = option.strip_prefix("--format=") {
        return Ok(("", Some(list)));
    }
    let letters = option.strip_prefix('-').unwrap_or(option);
    let (flags, list) = letters.split_once('o').map_or((letters, None), |(flags, list)| (flags, Some(list)));
    let known = !flags.contains(|letter| !"efaxuAw".contains(letter)) && !letters.is_empty();
    if known { Ok((flags, list)) } else { Err(option.to_owned()) }
}

/// The columns for flags, of which none means `-ef`.
fn usual(flags: &str) -> &'static [&'static str] {
    let has = |flag| flags.contains(flag);
    match () {
        () if flags.is_empty() || has('f') => &FULL,
        () if has('u') => &USER,
        () if has('x') || has('a') => &BSD,
        () => &SHORT,
    }
}

fn named(name: &str) -> Result<Column, String> {
    COLUMNS.into_iter().find(|column| column.names.contains(&name)).ok_or_else(|| name.to_owned())
}

/// Users have names in the container's own files; only this one is the same everywhere.
fn user(process: &Process) -> String {
    if process.uid == 0 { "root".into() } else { process.uid.to_string() }
}

/// The arguments, or the name in brackets for a process without any, as a zombie.
fn command(process: &Process) -> String {
    if process.arguments.is_empty() { format!("[{}]", process.name) } else { process.arguments.clone() }
}

fn terminal(process: &Process) -> String {
    const FIRST_PTS_MAJOR: u64 = 136;
    let (major, minor) =
        ((process.terminal >> 8) & 0xfff, (process.terminal & 0xff) | ((process.terminal >> 12) & 0xff_ff00));
    match major {
        0 => "?".into(),
        FIRST_PTS_MAJOR..=143 => format!("pts/{}", (major - FIRST_PTS_MAJOR) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

/// `[DAYS-]HH:MM:SS`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match seconds / 86_400 {
        0 => clock,
        days => format!("{days}-{clock}"),
    }
}

/// `MINUTES:SS`.
fn bsd_time(process: &Process) -> String {
    let seconds = process.cpu.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
