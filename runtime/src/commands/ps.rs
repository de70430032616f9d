//! `vmrt ps`
//!
//! The table comes from the guest's `/proc`, since the host's ps(1) does not see the guest's processes. The array of `--format json` is
//! for engines, which look up its pids on the host (`docker top`). So it contains the container's only process there, its VMM.

mod columns;
mod process;

use agent::ProcessList;

use self::columns::Column;
use self::process::Process;
use super::output::{print, print_json};
use crate::base::container_id::ContainerId;
use crate::cli::{ListFormat, PsArgs};
use crate::commands::error::Error;
use crate::sandbox::connection::RequestError;
use crate::sandbox::context::Context;
use crate::sandbox::processes::list_processes;
use crate::sandbox::record::{Phase, Record};
use crate::sandbox::status::status;

pub(crate) fn run(context: &Context, args: &PsArgs) -> Result<u8, Error> {
    let id: ContainerId = args.id.parse()?;
    let record = context.store.record(&id)?;
    match args.format {
        // Go encodes an empty list as `null`.
        ListFormat::Json if is_stopped(context, &id, &record) => print("null\n")?,
        ListFormat::Json => print_json(&[record.vmm.pid], false)?,
        ListFormat::Table => {
            let columns = columns::parse(&args.options).map_err(Error::PsOption)?;
            print(&table(&columns, &list(context, &id, &record)?))?;
        }
    }
    Ok(0)
}

fn is_stopped(context: &Context, id: &ContainerId, record: &Record) -> bool {
    status(record, &context.store.dir(id)) == Phase::Stopped
}

/// Returns the processes of a container; none if it is stopped.
fn list(context: &Context, id: &ContainerId, record: &Record) -> Result<Vec<Process>, Error> {
    if is_stopped(context, id, record) {
        return Ok(Vec::new());
    }
    processes(&list_processes(&context.store, id)?)
}

fn processes(list: &ProcessList) -> Result<Vec<Process>, Error> {
    let all: Option<Vec<_>> = list.processes.iter().map(|process| Process::new(process, list.uptime_ms)).collect();
    let mut all = all.ok_or(RequestError::UnexpectedReply)?;
    process::map_to_container_pids(&mut all);
    all.sort_by_key(|process| process.pid);
    Ok(all)
}

/// Formats a table. Each column is as wide as its widest cell.
fn table(columns: &[Column], processes: &[Process]) -> String {
    let header: Vec<String> = columns.iter().map(|column| column.title.to_owned()).collect();
    let row = |process| columns.iter().map(|column| (column.cell)(process)).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(processes.iter().map(row)).collect();
    let width = |index: usize| rows.iter().map(|row: &Vec<String>| row[index].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(columns).zip(&widths).map(|((cell, column), width)| {
            let width = (*width).max(column.width);
            if column.right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join(" ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use agent::GuestProcess;

    use super::*;

    fn sample() -> Vec<Process> {
        let stat = |pid: i32, parent: i32, name: &str| {
            format!("{pid} ({name}) S {parent} 9 9 34816 9 0 0 0 0 0 150 50 0 0 20 0 1 0 1000 4096000 100 0")
        };
        let process = |pid, uid, stat, arguments: &str| GuestProcess { pid, uid, stat, arguments: arguments.into() };
        let list = ProcessList {
            uptime_ms: 20_000,
            processes: vec![
                process(7, 1000, stat(57, 50, "a) (b"), "sleep 1000"),
                process(1, 0, stat(50, 1, "sh"), "sh -c sleep 1000"),
            ],
        };
        processes(&list).unwrap()
    }

    fn shown(options: &[&str]) -> Vec<String> {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        table(&columns::parse(&options).unwrap(), &sample()).lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_default_format_is_the_full_one() {
        let lines = shown(&[]);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&lines[0]), ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
        let first = words(&lines[1]);
        assert_eq!(first[..4], ["root", "1", "0", "20"], "two seconds of ten, and no parent in the container");
        assert_eq!(first[5..], ["pts/0", "00:00:02", "sh", "-c", "sleep", "1000"]);
        assert_eq!(words(&lines[2])[..3], ["1000", "7", "1"]);
    }

    #[test]
    fn options_select_columns() {
        assert_eq!(
            shown(&["-o", "pid,comm", "-o", "stat"]),
            ["    PID COMMAND STAT", "      1 sh      S", "      7 a) (b   S"]
        );
        assert_eq!(shown(&["-eo", "args="])[0], "COMMAND");
        assert_eq!(
            shown(&["-e", "-x"])[0].split_whitespace().collect::<Vec<_>>(),
            ["PID", "TTY", "STAT", "TIME", "COMMAND"]
        );
        assert_eq!(shown(&["aux"])[1].split_whitespace().collect::<Vec<_>>()[..2], ["root", "1"]);
    }

    #[test]
    fn an_unsupported_option_or_column_is_refused_by_name() {
        let of = |options: &[&str]| columns::parse(&options.iter().map(|&one| one.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["--forest"]).err().as_deref(), Some("--forest"));
        assert_eq!(of(&["-o", "pid,wchan"]).err().as_deref(), Some("wchan"));
        assert_eq!(of(&["-o"]).err().as_deref(), Some("-o"));
    }

    #[test]
    fn an_invalid_stat_line_of_the_guest_is_an_error() {
        let process = GuestProcess { pid: 1, uid: 0, stat: "1 (sh".into(), arguments: String::new() };
        assert!(processes(&ProcessList { uptime_ms: 0, processes: vec![process] }).is_err());
    }
}
