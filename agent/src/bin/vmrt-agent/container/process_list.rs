//! The processes of a container, as in the guest's `/proc`.

use std::os::fd::BorrowedFd;

use agent::GuestProcess;
use rustix::io::Errno;

use crate::error::Error;
use crate::sys::files;

/// Maximum number of bytes of a process's arguments.
const MAX_ARGUMENTS: usize = 4096;

/// Maximum number of bytes to read of `/proc/PID/stat` and `/proc/PID/status`. Both are shorter.
const MAX_FILE: usize = 8192;

/// Maximum size of a list in bytes. The list has to fit into a frame, in which a character may need two bytes.
const MAX_LIST: usize = 1 << 20;

/// Lists the processes `pids`. Those that have ended meanwhile are left out.
pub(crate) fn list(proc: BorrowedFd<'_>, pids: &[i32]) -> Result<Vec<GuestProcess>, Error> {
    let mut processes = Vec::new();
    let mut size = 0;
    for pid in pids {
        match examine(proc, *pid) {
            Ok(process) => {
                size += size_of::<GuestProcess>() + process.stat.len() + process.arguments.len();
                processes.push(process);
            }
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(error) => return Err(Error::at(format!("examine process {pid}"))(error)),
        }
        if size > MAX_LIST {
            return Err(Error::at("list the container's processes: there are too many")(Errno::TOOBIG));
        }
    }
    Ok(processes)
}

fn examine(proc: BorrowedFd<'_>, pid: i32) -> rustix::io::Result<GuestProcess> {
    let read = |file: &str, limit| files::read_at(proc, &format!("{pid}/{file}"), limit);
    let status = read("status", MAX_FILE)?;
    let (inner, uid) = parse_identity(&String::from_utf8_lossy(&status)).ok_or(Errno::ILSEQ)?;
    let stat = replace_control_characters(&read("stat", MAX_FILE)?);
    Ok(GuestProcess { pid: inner, uid, stat, arguments: join_arguments(&read("cmdline", MAX_ARGUMENTS)?) })
}

/// The pid in the process's own pid namespace, and the effective user.
fn parse_identity(status: &str) -> Option<(i32, u32)> {
    let line = |name| status.lines().find_map(|line| line.strip_prefix(name));
    let pid = line("NSpid:")?.split_whitespace().last()?.parse().ok()?;
    let uid = line("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    Some((pid, uid))
}

/// Joins the NUL-terminated arguments with spaces.
fn join_arguments(cmdline: &[u8]) -> String {
    let end = cmdline.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let spaced: Vec<_> = cmdline[..end].iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    replace_control_characters(&spaced)
}

/// Replaces control characters: the process itself chooses its name and arguments.
fn replace_control_characters(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end().chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn existing_processes_are_listed_and_others_are_left_out() {
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let own = std::process::id().cast_signed();
        let list = list(std::os::fd::AsFd::as_fd(&proc), &[own, i32::MAX]).unwrap();
        assert_eq!((list.len(), list[0].uid), (1, rustix::process::geteuid().as_raw()));
        assert!(list[0].stat.starts_with(&format!("{own} (")), "{}", list[0].stat);
        let program = std::env::args().next().unwrap();
        assert!(list[0].arguments.starts_with(&program), "{}", list[0].arguments);
    }

    #[test]
    fn arguments_become_one_printable_line() {
        assert_eq!(join_arguments(b"sh\0-c\0echo\ta\nb\x1b[2J\0\0"), "sh -c echo?a?b?[2J");
        assert_eq!(join_arguments(b""), "");
    }

    #[test]
    fn the_pid_is_the_one_in_the_innermost_namespace() {
        let status = "Name:\tsh\nUid:\t5\t6\t7\t8\nNSpid:\t41\t3\n";
        assert_eq!(parse_identity(status), Some((3, 6)));
        assert_eq!(parse_identity("Name:\tsh\n"), None);
    }
}
