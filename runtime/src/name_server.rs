//! Docker's name server, which listens in the network namespace of a sandbox at an address that no packet reaches from the
//! guest.

use std::fs;
use std::path::Path;

use oci_spec::runtime::Spec;

/// Whether the container is told to ask it: by the file that an engine mounts, as it is now.
pub(crate) fn is_asked(spec: &Spec) -> bool {
    let mounts = spec.mounts().iter().flatten();
    let file = mounts.rev().find(|mount| mount.destination() == Path::new("/etc/resolv.conf"));
    let text = file.and_then(|mount| fs::read_to_string(mount.source().as_ref()?).ok());
    text.is_some_and(|text| text.lines().any(names_it))
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
        is_asked(&spec)
    }

    #[test]
    fn the_file_an_engine_mounts_tells() {
        assert!(is_asked_with("search example.org\nnameserver 127.0.0.11\noptions ndots:0\n"));
        assert!(!is_asked_with("# nameserver 127.0.0.11\nnameserver 127.0.0.1\n"));
        assert!(!is_asked_with(""));
        assert!(!is_asked(&Spec::default()));
    }
}
