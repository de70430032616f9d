//! The pid files that engines read.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::base::state_file;

/// The pid file could not be written.
#[derive(Debug, Error)]
#[error("write pid file {}", path.display())]
pub(crate) struct PidFileError {
    path: PathBuf,
    source: io::Error,
}

/// Writes a pid without a newline. The file is replaced by rename, so that no reader sees a part of it. The temporary file is a new
/// one: others may be able to make symbolic links in the directory.
pub(crate) fn write_pid_file(path: &Path, pid: i32) -> Result<(), PidFileError> {
    let failed = |source: io::Error| PidFileError { path: path.into(), source };
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    state_file::replace(path, &temporary, 0o666, pid.to_string().as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_pid_file_contains_only_the_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        write_pid_file(&path, 4242).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "4242");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_pid_file(&dir.path().join("no/pid"), 1).is_err());
    }

    #[test]
    fn a_pid_is_not_written_through_a_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("other"), "mine").unwrap();
        std::os::unix::fs::symlink(path("other"), path(".pid")).unwrap();
        std::os::unix::fs::symlink(path("other"), path("pid")).unwrap();
        write_pid_file(&path("pid"), 4242).unwrap();
        assert_eq!(fs::read_to_string(path("other")).unwrap(), "mine");
        assert_eq!(fs::read_link(path("pid")).unwrap_err().kind(), io::ErrorKind::InvalidInput, "it is a link");
        assert_eq!(fs::read_to_string(path("pid")).unwrap(), "4242");
    }
}
