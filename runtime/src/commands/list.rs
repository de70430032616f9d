//! `vmrt list`

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Uid, User};
use vmm::escape_control_characters;

use super::output::{print, print_json};
use super::state::State;
use crate::cli::{ListArgs, ListFormat};
use crate::commands::error::Error;
use crate::sandbox::context::Context;

pub(crate) fn run(context: &Context, args: &ListArgs) -> Result<u8, Error> {
    let ids = context.store.ids()?;
    if args.quiet {
        print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>())?;
        return Ok(0);
    }
    // A container that is deleted meanwhile is skipped.
    let records = ids.iter().filter_map(|id| Some((context.store.dir(id), context.store.record(id).ok()?)));
    let records: Vec<_> = records.collect();
    let states: Vec<_> = records.iter().map(|(dir, record)| State::of(record, dir, owner(dir))).collect();
    match args.format {
        ListFormat::Table => print(&table(&states))?,
        // Go encodes an empty list as `null`, and callers may expect that.
        ListFormat::Json if states.is_empty() => print("null\n")?,
        ListFormat::Json => print_json(&states, false)?,
    }
    Ok(0)
}

/// Returns the name of the user that owns the container's directory.
fn owner(dir: &Path) -> String {
    let Ok(metadata) = dir.metadata() else { return String::new() };
    let uid = Uid::from_raw(metadata.uid());
    User::from_uid(uid).ok().flatten().map_or_else(|| format!("#{uid}"), |user| user.name)
}

fn table(states: &[State]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from);
    let rows = states.iter().map(row);
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    let widths = [0, 1, 2, 3, 4].map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let mut table = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            // As in runc's table, cells are padded by three and columns are at least twelve wide. Writing to a string does not fail.
            let _ = write!(table, "{cell:<0$}", (width + 3).max(12));
        }
        table.push_str(&row[5]);
        table.push('\n');
    }
    table
}

fn row(state: &State) -> [String; 6] {
    [
        state.id.to_owned(),
        state.pid.to_string(),
        state.status.name().to_owned(),
        escape_control_characters(&state.bundle.to_string_lossy()),
        escape_control_characters(state.created),
        state.owner.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_the_table_is_runcs() {
        assert_eq!(table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }
}
