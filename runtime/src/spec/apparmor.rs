//! AppArmor, which the guest's kernel has not.
//!
//! Engines name their own profile for every container on a host with AppArmor, unasked. It keeps a container from the kernel it
//! shares with the host; here the machine does. That profile is left out and told; one that somebody chose is refused, by the
//! agent.

use oci_spec::runtime::Process;

use crate::base::log::Log;

/// Profiles that Docker, containerd and nerdctl give by default. Podman's has its version in its name.
const DEFAULTS: [&str; 3] = ["docker-default", "cri-containerd.apparmor.d", "nerdctl-default"];
const PODMANS: &str = "containers-default-";

/// The profile of a process that AppArmor is to leave alone, as the guest does anyway.
pub(crate) const UNCONFINED: &str = "unconfined";

/// Takes an engine's own profile off a process, and the one that is none.
pub(crate) fn remove_default(process: &mut Process, log: &Log) {
    if process.apparmor_profile().as_deref() == Some(UNCONFINED) {
        process.set_apparmor_profile(None);
    }
    let Some(name) = process.apparmor_profile().as_deref().filter(|name| is_default(name)) else { return };
    log.warn(&format!("AppArmor profile {name} is not applied: the container is confined by its machine"));
    process.set_apparmor_profile(None);
}

fn is_default(name: &str) -> bool {
    DEFAULTS.contains(&name) || name.starts_with(PODMANS)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::ProcessBuilder;

    use super::*;
    use crate::base::log::Format;

    #[test]
    fn an_engines_own_profile_is_left_out_and_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = Log::new(Some(file.path()), Format::Text, false).unwrap();
        for (name, left) in [
            ("docker-default", None),
            ("containers-default-0.50.1", None),
            ("unconfined", None),
            ("mine", Some("mine")),
        ] {
            let mut process = ProcessBuilder::default().apparmor_profile(name).build().unwrap();
            remove_default(&mut process, &log);
            assert_eq!(process.apparmor_profile().as_deref(), left);
        }
        let said = std::fs::read_to_string(file.path()).unwrap();
        assert!(said.contains("docker-default") && said.lines().count() == 2, "{said}");
    }
}
