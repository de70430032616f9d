//! Mappings of user and group ids, of the container and of its mounts.

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount, Spec};

use super::error::BundleError;
use super::mounts::{is_bind, options};

/// Checks the id mappings of all mounts.
pub(crate) fn check(spec: &Spec) -> Result<(), BundleError> {
    let linux = spec.linux().as_ref();
    let container_has_mappings =
        linux.is_some_and(|linux| has_entries(linux.uid_mappings()) && has_entries(linux.gid_mappings()));
    spec.mounts().iter().flatten().try_for_each(|mount| check_mount(mount, container_has_mappings))
}

/// Checks the id mappings of a mount. A mount without mappings uses those of the container, if `container_has_mappings`.
fn check_mount(mount: &Mount, container_has_mappings: bool) -> Result<(), BundleError> {
    let present = [mount.uid_mappings(), mount.gid_mappings()].map(has_entries);
    let complete = if present == [false, false] { container_has_mappings } else { present == [true, true] };
    let invalid = |reason| Err(BundleError::Mount { destination: mount.destination().clone(), reason });
    match () {
        () if present == [false, false] && !options(mount).any(|option| matches!(option, "idmap" | "ridmap")) => Ok(()),
        () if !is_bind(mount) => invalid("id-mapped mounts are only supported for bind-mounts"),
        () if !complete => invalid("id-mapped mounts must have both uid and gid mappings specified"),
        () => Ok(()),
    }
}

fn has_entries(mappings: &Option<Vec<LinuxIdMapping>>) -> bool {
    mappings.as_ref().is_some_and(|list| !list.is_empty())
}

/// Maps each id of the container to itself in the guest's specification: the VMM runs in a user namespace that has the mappings.
pub(crate) fn map_to_identity(spec: &mut Spec) {
    let Some(linux) = spec.linux_mut() else { return };
    let [uids, gids] = [linux.uid_mappings(), linux.gid_mappings()].map(|list| list.as_deref().map(identity_mappings));
    linux.set_uid_mappings(uids).set_gid_mappings(gids);
}

fn identity_mappings(list: &[LinuxIdMapping]) -> Vec<LinuxIdMapping> {
    let identity = |map: &LinuxIdMapping| {
        let id = map.container_id();
        let identity = LinuxIdMappingBuilder::default().container_id(id).host_id(id).size(map.size());
        identity.build().expect("no field of a mapping is missing")
    };
    list.iter().map(identity).collect()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;
    use serde_json::json;

    use super::*;

    fn map() -> Vec<LinuxIdMapping> {
        vec![LinuxIdMappingBuilder::default().container_id(0_u32).host_id(1000_u32).size(1_u32).build().unwrap()]
    }

    fn bind(options: &[&str]) -> MountBuilder {
        let options = options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>();
        MountBuilder::default().destination("/x").source("/y").typ("bind").options(options)
    }

    fn message(mount: MountBuilder, container: bool) -> Option<String> {
        error_of(&mount.build().unwrap(), container)
    }

    fn error_of(mount: &Mount, container: bool) -> Option<String> {
        check_mount(mount, container).err().map(|error| error.to_string())
    }

    #[test]
    fn only_bind_mounts_may_have_mappings_and_these_must_be_complete() {
        let both = |mount: MountBuilder| mount.uid_mappings(map()).gid_mappings(map());
        assert_eq!(message(bind(&["rbind"]), false), None);
        assert_eq!(message(both(bind(&["rbind"])), false), None);
        assert_eq!(message(bind(&["rbind", "ridmap"]), true), None);
        let incomplete = "invalid mount /x: id-mapped mounts must have both uid and gid mappings specified";
        assert_eq!(message(bind(&["rbind", "idmap"]), false).as_deref(), Some(incomplete));
        let mut incomplete_mount = both(bind(&[])).build().unwrap();
        incomplete_mount.set_gid_mappings(None);
        assert_eq!(error_of(&incomplete_mount, true).as_deref(), Some(incomplete));
        let other = "invalid mount /x: id-mapped mounts are only supported for bind-mounts";
        assert_eq!(message(both(bind(&[]).typ("tmpfs")), true).as_deref(), Some(other));
        assert_eq!(message(both(bind(&["remount", "bind"])), true).as_deref(), Some(other));
        assert_eq!(message(bind(&["ridmap"]).typ("proc"), true).as_deref(), Some(other));
    }

    #[test]
    fn ids_are_mapped_to_themselves() {
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let linux = json!({"namespaces": [{"type": "user"}], "uidMappings": map, "gidMappings": map});
        let mut spec = serde_json::from_value(json!({"ociVersion": "1.0.2", "linux": linux})).unwrap();
        map_to_identity(&mut spec);
        let linux = serde_json::to_value(spec.linux()).unwrap();
        let identity = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
        assert_eq!((&linux["uidMappings"], &linux["gidMappings"]), (&identity, &identity));
    }
}
