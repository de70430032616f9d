//! The search for the program of a process.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use crate::error::{self, Error};

/// Finds program `name` with the caller's permissions and working directory. Without a `/` in the name, searches `PATH`
/// of `env`.
pub(crate) fn find(name: &CString, env: &[CString]) -> Result<CString, Error> {
    let path = Path::new(OsStr::from_bytes(name.as_bytes()));
    if name.as_bytes().contains(&b'/') {
        return match check_executable(path) {
            Ok(()) => Ok(name.clone()),
            Err(Unusable::Missing(error)) => {
                let reason = format!("stat {}: {}", path.display(), error::errno_text(error));
                Err(Error::ProgramNotFound { program: path.display().to_string(), reason })
            }
            Err(Unusable::NotExecutable(reason)) => {
                Err(Error::ProgramNotExecutable { program: path.display().to_string(), reason })
            }
        };
    }
    let mut candidates = search_path(env).into_iter().map(|directory| directory.join(path));
    let found = candidates.find(|candidate| !name.is_empty() && check_executable(candidate).is_ok());
    found.and_then(|found| CString::new(found.into_os_string().into_vec()).ok()).ok_or_else(|| Error::ProgramNotFound {
        program: path.display().to_string(),
        reason: "executable file not found in $PATH".into(),
    })
}

enum Unusable {
    Missing(Errno),
    NotExecutable(String),
}

fn check_executable(path: &Path) -> Result<(), Unusable> {
    let stat = rustix::fs::stat(path).map_err(|error| match error {
        Errno::ACCESS => Unusable::NotExecutable(error::errno_text(error)),
        error => Unusable::Missing(error),
    })?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        // The error of runc 1.1 for a directory.
        return Err(Unusable::NotExecutable(error::errno_text(Errno::ACCESS)));
    }
    match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // A seccomp filter may not know this recent system call. `execve` reports the error then.
        Err(Errno::NOSYS | Errno::PERM) if stat.st_mode & 0o111 != 0 => Ok(()),
        result => result.map_err(|error| Unusable::NotExecutable(error::errno_text(error))),
    }
}

/// The directories of `PATH`. Of several variables of that name the last one counts, as for the executed program.
fn search_path(env: &[CString]) -> Vec<PathBuf> {
    let path = env.iter().rev().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
    let directories = path.map(|path| path.split(|byte| *byte == b':'));
    let directory = |name: &[u8]| match name {
        b"" => PathBuf::from("."),
        name => PathBuf::from(OsStr::from_bytes(name)),
    };
    directories.into_iter().flatten().map(directory).collect()
}

/// The error of a failed `execve` of `program`.
pub(crate) fn exec_error(program: &CString, error: Errno) -> Error {
    let program = program.to_string_lossy().into_owned();
    let reason = error::errno_text(error);
    match error {
        Errno::NOENT => Error::ProgramNotFound { program, reason },
        Errno::ACCESS | Errno::NOEXEC | Errno::PERM | Errno::LOOP | Errno::NOTDIR => {
            Error::ProgramNotExecutable { program, reason }
        }
        error => Error::at(format!("exec: \"{program}\""))(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn find_in(path: &str, name: &str) -> Result<CString, String> {
        let env = [CString::new(format!("PATH={path}")).unwrap()];
        find(&CString::new(name).unwrap(), &env).map_err(|error| error.to_string())
    }

    fn file(directory: &TempDir, name: &str, mode: u32) -> String {
        let path = directory.path().join(name);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn the_first_executable_file_in_the_path_is_found() {
        let (first, second) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        file(&first, "tool", 0o644);
        let tool = file(&second, "tool", 0o755);
        fs::create_dir(first.path().join("folder")).unwrap();
        let path = format!("{}:{}", first.path().display(), second.path().display());
        assert_eq!(find_in(&path, "tool").unwrap().to_str().unwrap(), tool);
        let missing = "exec: \"folder\": executable file not found in $PATH";
        assert_eq!(find_in(&path, "folder").unwrap_err(), missing);
        assert!(find_in(&path, "").is_err());
    }

    #[test]
    fn the_messages_for_an_unusable_path_are_those_of_runc() {
        let directory = TempDir::new().unwrap();
        let plain = file(&directory, "plain", 0o644);
        assert_eq!(find_in("", &plain).unwrap_err(), format!("exec: \"{plain}\": permission denied"));
        let missing = "exec: \"/no/such\": stat /no/such: no such file or directory";
        assert_eq!(find_in("", "/no/such").unwrap_err(), missing);
        assert_eq!(find_in("", "/tmp").unwrap_err(), "exec: \"/tmp\": permission denied");
    }

    #[test]
    fn without_a_path_nothing_is_found() {
        assert!(find(&CString::new("true").unwrap(), &[]).is_err());
    }
}
