//! `vmrt spec`

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::refuse_if;
use crate::bundle::{BundleError, CONFIG_FILE};
use crate::cli::SpecArgs;
use crate::error::Error;

/// runc's starter specification: a shell in a terminal.
const STARTER: &str = include_str!("spec.json");

pub(crate) fn run(args: &SpecArgs) -> Result<u8, Error> {
    refuse_if(args.rootless, "--rootless", "is refused: a virtual machine needs /dev/kvm, not user namespaces")?;
    let dir = args.bundle.as_deref().unwrap_or(Path::new("."));
    dir.read_dir().map_err(|source| BundleError::NoBundle { path: dir.into(), source })?;
    write(dir.join(CONFIG_FILE))?;
    Ok(0)
}

fn write(path: PathBuf) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path);
    match file.and_then(|mut file| file.write_all(STARTER.as_bytes())) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::SpecExists),
        result => result.map_err(|source| Error::SpecFile { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let args = SpecArgs { bundle: Some(dir.path().into()), rootless: false };
        run(&args).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap(), STARTER);
        assert_eq!(run(&args).unwrap_err().to_string(), "File config.json exists. Remove it first");
    }
}
