//! Namespaces of a specification, `linux.namespaces`.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

/// Whether the specification lists a namespace of this kind, new or existing.
pub(crate) fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    all(spec).any(|namespace| namespace.typ() == kind)
}

/// Lists the existing namespaces that the container joins, with their paths.
pub(crate) fn existing(spec: &Spec) -> impl Iterator<Item = (LinuxNamespaceType, &Path)> {
    all(spec).filter_map(|namespace| Some((namespace.typ(), path(namespace)?)))
}

/// The path of the existing network namespace that the specification names.
pub(crate) fn network_path(spec: &Spec) -> Option<&Path> {
    path(all(spec).find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?)
}

fn all(spec: &Spec) -> impl Iterator<Item = &LinuxNamespace> {
    spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten())
}

fn path(namespace: &LinuxNamespace) -> Option<&Path> {
    namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}
