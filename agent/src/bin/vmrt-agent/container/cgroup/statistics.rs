//! Resource usage of a container: the statistics files of its cgroup.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use rustix::fs::{Dir, FileType};

use super::Cgroup;
use crate::sys::files;

/// Suffixes of the names of files with numbers.
const NUMBERS: [&str; 6] = [".current", ".events", ".max", ".peak", ".pressure", ".stat"];

/// Maximum number of bytes of one file. The longest one, `memory.stat`, has about two thousand.
const MAX_FILE: usize = 16 << 10;

impl Cgroup {
    /// Names and contents of its files with numbers. Unreadable files are left out, such as pressure files without
    /// pressure accounting.
    pub(crate) fn statistics(&self) -> rustix::io::Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        for entry in Dir::read_from(&self.directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if entry.file_type() != FileType::RegularFile || !holds_numbers(name) {
                continue;
            }
            if let Ok(content) = files::read_at(self.directory.as_fd(), name, MAX_FILE) {
                files.insert(name.to_owned(), String::from_utf8_lossy(&content).into_owned());
            }
        }
        Ok(files)
    }
}

/// Whether a file belongs to a controller and contains numbers.
fn holds_numbers(name: &str) -> bool {
    !name.starts_with("cgroup.") && NUMBERS.iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_controllers_with_numbers_are_selected() {
        for name in ["memory.current", "hugetlb.2MB.max", "io.stat", "memory.swap.peak", "cpu.pressure"] {
            assert!(holds_numbers(name), "{name}");
        }
        for name in ["cgroup.events", "cgroup.procs", "memory.reclaim", "cpu.weight"] {
            assert!(!holds_numbers(name), "{name}");
        }
    }
}
