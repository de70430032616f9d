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

/// Returns the starter specification with a user namespace whose root is the caller, and without settings that need more ids or
/// privileges: the group of terminals, and limits.
///
/// In two points runc's differs: it has no network namespace, which means the host's network, and which vmrt refuses; and it mounts the
/// host's `/sys`, since only root may mount a new one, while the guest has its own.
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
    fn a_rootless_specification_has_a_user_namespace_and_no_limits() {
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
    fn an_existing_file_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let args = SpecArgs { bundle: Some(dir.path().into()), rootless: false };
        run(&args).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap(), STARTER);
        assert_eq!(run(&args).unwrap_err().to_string(), "File config.json exists. Remove it first");
    }
}
