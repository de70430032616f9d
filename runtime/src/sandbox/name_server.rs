//! Docker's name server, which listens in the network namespace of a sandbox at an address that no packet reaches from the
//! guest.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

/// The file that an engine mounts to tell the container which name servers to ask.
pub(crate) fn resolv_conf(spec: &Spec) -> Option<PathBuf> {
    let mut mounts = spec.mounts().iter().flatten().rev();
    let mount = mounts.find(|mount| mount.destination() == Path::new("/etc/resolv.conf"))?;
    mount.source().clone()
}

/// Whether the container is told to ask Docker's, by that file as it is now.
pub(crate) fn is_asked(resolv_conf: &Path) -> bool {
    fs::read_to_string(resolv_conf).is_ok_and(|text| text.lines().any(names_it))
}

/// Whether a line of `resolv.conf(5)` names it.
fn names_it(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace();
    words.next() == Some("nameserver") && words.next().and_then(|word| word.parse().ok()) == Some(agent::NAME_SERVER)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn is_asked_with(text: &str) -> bool {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, text).unwrap();
        let mount = MountBuilder::default().destination("/etc/resolv.conf").source(file.path()).build().unwrap();
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![mount]));
        is_asked(&resolv_conf(&spec).unwrap())
    }

    #[test]
    fn the_file_an_engine_mounts_tells() {
        assert!(is_asked_with("search example.org\nnameserver 127.0.0.11\noptions ndots:0\n"));
        assert!(!is_asked_with("# nameserver 127.0.0.11\nnameserver 127.0.0.1\n"));
        assert!(!is_asked_with(""));
        assert_eq!(resolv_conf(&Spec::default()), None);
    }
}
