//! The guest's specification: that of the bundle without the settings that the host applies.

use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, Spec};

use crate::spec::hooks;

/// Removes the settings that the host applies from the guest's specification.
pub(crate) fn remove_host_settings(spec: &mut Spec) {
    remove_host_cpus(spec);
    remove_network_path(spec);
    hooks::retain_guest_hooks(spec);
}

/// Removes the lists of CPUs and memory nodes. They contain numbers of the host, where the VMM is bound to them. The guest has others.
pub(crate) fn remove_host_cpus(spec: &mut Spec) {
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    if let Some(cpu) = resources.and_then(|resources| resources.cpu_mut().as_mut()) {
        cpu.set_cpus(None);
        cpu.set_mems(None);
    }
}

/// Removes the path of the network namespace. It is that of the VMM on the host; the container gets a new one in the guest.
fn remove_network_path(spec: &mut Spec) {
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    let namespaces = namespaces.into_iter().flatten();
    for namespace in namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::Network) {
        namespace.set_path(None);
    }
}

/// Removes and returns the seccomp profile of the guest's specification. The guest gets the compiled filter instead.
pub(crate) fn take_seccomp(spec: &mut Spec) -> Option<LinuxSeccomp> {
    let linux = spec.linux_mut().as_mut()?;
    let profile = linux.seccomp().clone();
    linux.set_seccomp(None);
    profile
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cpu_numbers_of_the_host_are_removed() {
        let cpu = json!({"cpus": "3", "shares": 7});
        let mut spec = serde_json::from_value(json!({"linux": {"resources": {"cpu": cpu}}})).unwrap();
        remove_host_settings(&mut spec);
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!((cpu.cpus(), cpu.shares()), (&None, Some(7)));
    }
}
