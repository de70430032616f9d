//! The columns of the process table, and the options of ps(1) that select them.

use std::time::Duration;

use super::process::Process;
use crate::base::timestamp;

/// A column of the table.
#[derive(Clone, Copy)]
pub(super) struct Column {
    names: &'static [&'static str],
    pub(super) title: &'static str,
    /// Minimum width, as in ps(1).
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

/// All columns.
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

/// Parses options of ps(1) and returns the columns that they select. Options that select processes are accepted, but all processes of
/// the container are shown.
///
/// # Errors
/// The name of an option or column that is not supported.
pub(super) fn parse(options: &[String]) -> Result<Vec<Column>, String> {
    let (mut chosen, mut letters) = (Vec::new(), String::new());
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let (flags, list) = split(option)?;
        letters.push_str(flags);
        let list = match list {
            Some("") => Some(rest.next().ok_or_else(|| option.clone())?.as_str()),
            list => list,
        };
        for name in list.iter().flat_map(|list| list.split([',', ' '])).filter(|name| !name.is_empty()) {
            chosen.push(column(name.trim_end_matches('='))?);
        }
    }
    if chosen.is_empty() { default_columns(&letters).iter().map(|name| column(name)).collect() } else { Ok(chosen) }
}

/// Splits an argument into its flags and the list of columns after `-o`. The list is empty if it is the next argument.
fn split(option: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(list) = option.strip_prefix("--format=") {
        return Ok(("", Some(list)));
    }
    let letters = option.strip_prefix('-').unwrap_or(option);
    let (flags, list) = letters.split_once('o').map_or((letters, None), |(flags, list)| (flags, Some(list)));
    let known = !flags.contains(|letter| !"efaxuAw".contains(letter)) && !letters.is_empty();
    if known { Ok((flags, list)) } else { Err(option.to_owned()) }
}

/// Returns the columns for flags without a list of columns. No flags mean `-ef`.
fn default_columns(flags: &str) -> &'static [&'static str] {
    let has = |flag| flags.contains(flag);
    match () {
        () if flags.is_empty() || has('f') => &FULL,
        () if has('u') => &USER,
        () if has('x') || has('a') => &BSD,
        () => &SHORT,
    }
}

fn column(name: &str) -> Result<Column, String> {
    COLUMNS.into_iter().find(|column| column.names.contains(&name)).ok_or_else(|| name.to_owned())
}

/// Formats a user. The names of users are in the container's files, which vmrt does not read; only `root` is always the same.
fn user(process: &Process) -> String {
    if process.uid == 0 { "root".into() } else { process.uid.to_string() }
}

/// Formats a command line: the arguments, or the name in brackets for a process without arguments, such as a zombie.
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

/// Formats a time as `[DAYS-]HH:MM:SS`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match seconds / 86_400 {
        0 => clock,
        days => format!("{days}-{clock}"),
    }
}

/// Formats CPU time as `MINUTES:SS`.
fn bsd_time(process: &Process) -> String {
    let seconds = process.cpu.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
