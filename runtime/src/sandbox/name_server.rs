//! Docker's embedded name server. It listens in the network namespace of a sandbox at a loopback address, which packets of the guest
//! do not reach.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::base::untrusted_file;

/// The most bytes of a resolv.conf that are read. A container may write to the file.
const RESOLV_CONF_LIMIT: u64 = 64 << 10;

/// Returns the host's file that an engine mounts as the container's `/etc/resolv.conf`.
pub(crate) fn resolv_conf(spec: &Spec) -> Option<PathBuf> {
    let mut mounts = spec.mounts().iter().flatten().rev();
    let mount = mounts.find(|mount| mount.destination() == Path::new("/etc/resolv.conf"))?;
    mount.source().clone()
}

/// Whether the current content of `resolv_conf` names Docker's name server.
pub(crate) fn is_configured(resolv_conf: &Path) -> bool {
    let start = untrusted_file::read_start(resolv_conf, RESOLV_CONF_LIMIT);
    start.is_ok_and(|start| String::from_utf8_lossy(&start).lines().any(is_name_server_line))
}

/// Whether a line of resolv.conf(5) names Docker's name server.
fn is_name_server_line(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace();
    words.next() == Some("nameserver") && words.next().and_then(|word| word.parse().ok()) == Some(agent::NAME_SERVER)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn is_configured_in(text: &str) -> bool {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, text).unwrap();
        let mount = MountBuilder::default().destination("/etc/resolv.conf").source(file.path()).build().unwrap();
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![mount]));
        is_configured(&resolv_conf(&spec).unwrap())
    }

    #[test]
    fn the_name_server_is_found_in_the_mounted_resolv_conf() {
        assert!(is_configured_in("search example.org\nnameserver 127.0.0.11\noptions ndots:0\n"));
        assert!(!is_configured_in("# nameserver 127.0.0.11\nnameserver 127.0.0.1\n"));
        assert!(!is_configured_in(""));
        assert!(!is_configured_in(&format!("{}\nnameserver 127.0.0.11\n", "#".repeat(64 << 10))), "beyond the limit");
        assert!(!is_configured(Path::new("/dev/zero")));
        assert_eq!(resolv_conf(&Spec::default()), None);
    }
}
