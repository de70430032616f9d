//! `vmrt spec`

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};

use crate::cli::SpecArgs;
use crate::commands::error::Error;
use crate::spec::STARTER;
use crate::spec::bundle::CONFIG_FILE;
use crate::spec::error::BundleError;

pub(crate) fn run(args: &SpecArgs) -> Result<u8, Error> {
    let dir = args.bundle.as_deref().unwrap_or(Path::new("."));
    dir.read_dir().map_err(|source| BundleError::NoBundle { path: dir.into(), source })?;
    let text = if args.rootless { rootless(geteuid().as_raw(), getegid().as_raw()) } else { STARTER.into() };
    write(dir.join(CONFIG_FILE), &text)?;
    Ok(0)
}

/// The same with a user namespace in which root is the caller, and without what it takes more users for: a terminal's
/// group, and limits. runc leaves the network namespace out as well, which would mean the host's: vmrt refuses that. And it mounts the
/// host's `/sys`, as nobody but root may mount another; the guest has one of its own.
fn rootless(uid: u32, gid: u32) -> String {
    let mapping = |name: &str, id| {
        let fields = [("containerID", 0), ("hostID", id), ("size", 1)];
        let fields = fields.map(|(name, value)| format!("\t\t\t\t\"{name}\": {value}")).join(",\n");
        format!("\t\t\"{name}\": [\n\t\t\t{{\n{fields}\n\t\t\t}}\n\t\t],\n")
    };
    let mappings = mapping("uidMappings", uid) + &mapping("gidMappings", gid);
    let begin = STARTER.find("\t\t\"resources\"").unwrap_or_default();
    let end = STARTER.find("\t\t\"namespaces\"").unwrap_or_default();
    let (head, tail) = (&STARTER[..begin], &STARTER[end..]);
    let user = "\"type\": \"cgroup\"\n\t\t\t},\n\t\t\t{\n\t\t\t\t\"type\": \"user\"";
    let tail = tail.replacen("\"type\": \"cgroup\"", user, 1);
    head.replacen(",\n\t\t\t\t\"gid=5\"", "", 1) + &mappings + &tail
}

fn write(path: PathBuf, text: &str) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path);
    match file.and_then(|mut file| file.write_all(text.as_bytes())) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::SpecExists),
        result => result.map_err(|source| Error::SpecFile { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rootless_starter_differs_in_what_needs_root() {
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let (starter, rootless) = (read(STARTER), read(&rootless(1000, 50)));
        let mapping = |id| serde_json::json!([{"containerID": 0, "hostID": id, "size": 1}]);
        assert_eq!(rootless["linux"]["uidMappings"], mapping(1000));
        assert_eq!(rootless["linux"]["gidMappings"], mapping(50));
        assert!(rootless["linux"].get("resources").is_none());
        let namespaces = rootless["linux"]["namespaces"].as_array().unwrap();
        assert_eq!(namespaces.len(), starter["linux"]["namespaces"].as_array().unwrap().len() + 1);
        assert_eq!(namespaces.last().unwrap()["type"], "user");
        assert!(!rootless["mounts"].to_string().contains("gid="));
        assert_eq!((&rootless["process"], &rootless["root"]), (&starter["process"], &starter["root"]));
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let args = SpecArgs { bundle: Some(dir.path().into()), rootless: false };
        run(&args).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap(), STARTER);
        assert_eq!(run(&args).unwrap_err().to_string(), "File config.json exists. Remove it first");
    }
}
