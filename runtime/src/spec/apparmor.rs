//! AppArmor profiles. The guest's kernel has no AppArmor.
//!
//! On a host with AppArmor, an engine sets its default profile for every container. This profile protects the kernel that containers
//! share with the host. Here the virtual machine does this, so vmrt removes a default profile with a warning. The agent refuses
//! any other profile.

use oci_spec::runtime::Process;

use crate::base::log::Log;

/// Default profiles of Docker, containerd and nerdctl.
const DEFAULT_PROFILES: [&str; 3] = ["docker-default", "cri-containerd.apparmor.d", "nerdctl-default"];
/// Prefix of Podman's default profile. Podman's version follows.
const PODMAN_PREFIX: &str = "containers-default-";

/// The profile of a process that AppArmor does not confine. In the guest, this holds for every process.
pub(crate) const UNCONFINED: &str = "unconfined";

/// Removes an engine's default profile, with a warning, or `unconfined` from a process.
pub(crate) fn remove_default(process: &mut Process, log: &Log) {
    if process.apparmor_profile().as_deref() == Some(UNCONFINED) {
        process.set_apparmor_profile(None);
    }
    let Some(name) = process.apparmor_profile().as_deref().filter(|name| is_default(name)) else { return };
    log.warn(&format!("AppArmor profile {name} is not applied: the container is confined by its machine"));
    process.set_apparmor_profile(None);
}

fn is_default(name: &str) -> bool {
    DEFAULT_PROFILES.contains(&name) || name.starts_with(PODMAN_PREFIX)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::ProcessBuilder;

    use super::*;
    use crate::base::log::Format;

    #[test]
    fn a_default_profile_is_removed_with_a_warning() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = Log::new(Some(file.path()), Format::Text, false).unwrap();
        for (name, expected) in [
            ("docker-default", None),
            ("containers-default-0.50.1", None),
            ("unconfined", None),
            ("mine", Some("mine")),
        ] {
            let mut process = ProcessBuilder::default().apparmor_profile(name).build().unwrap();
            remove_default(&mut process, &log);
            assert_eq!(process.apparmor_profile().as_deref(), expected);
        }
        let logged = std::fs::read_to_string(file.path()).unwrap();
        assert!(logged.contains("docker-default") && logged.lines().count() == 2, "{logged}");
    }
}
