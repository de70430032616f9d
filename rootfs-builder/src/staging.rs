//! Creates a directory beside its final path, and renames it when it is complete.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, fs};

use tempfile::TempDir;
use thiserror::Error;

/// The reason why the output directory cannot be created.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("{} exists and is not an empty directory", .path.display())]
    Exists { path: PathBuf },
    #[error("create a directory beside {}", .path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("rename the finished bundle to {}", .path.display())]
    Rename { path: PathBuf, source: io::Error },
}

/// An incomplete output directory; removed when dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    directory: TempDir,
    output: PathBuf,
}

impl Staging {
    /// Creates a temporary directory beside `output`, and missing parent directories.
    pub(crate) fn new(output: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Make { path: output.into(), source };
        let output = env::current_dir().map_err(failed)?.join(output);
        if !is_absent_or_empty(&output).map_err(failed)? {
            return Err(Error::Exists { path: output });
        }
        let parent = output.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(failed)?;
        let directory = tempfile::Builder::new().prefix(".rootfs-builder-").tempdir_in(parent).map_err(failed)?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
        Ok(Self { directory, output })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Renames the directory to the output path. Replaces an empty directory there, and fails for anything else.
    pub(crate) fn finish(self) -> Result<(), Error> {
        fs::rename(self.directory.path(), &self.output)
            .map_err(|source| Error::Rename { path: self.output.clone(), source })?;
        // The temporary path does not exist any more, so there is nothing to remove.
        let _ = self.directory.keep();
        Ok(())
    }
}

/// Whether the path is absent or an empty directory.
fn is_absent_or_empty(path: &Path) -> io::Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(!path.is_symlink()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_appears_only_when_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("deep/bundle");
        let staging = Staging::new(&output).unwrap();
        fs::write(staging.path().join("file"), "x").unwrap();
        assert!(!output.exists());
        staging.finish().unwrap();
        assert_eq!(fs::read(output.join("file")).unwrap(), b"x");
        assert_eq!(output.parent().unwrap().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_dropped_staging_directory_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(Staging::new(&folder.path().join("bundle")).unwrap());
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_full_directory_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        assert!(matches!(Staging::new(folder.path()), Err(Error::Exists { .. })));
        assert!(matches!(Staging::new(&folder.path().join("file")), Err(Error::Exists { .. })));
    }
}
