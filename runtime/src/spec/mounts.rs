//! Mounts of a specification, `mounts`.

use oci_spec::runtime::Mount;

/// Whether the mount creates a bind mount. A remount only changes an existing mount.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    let has_type = mount.typ().as_deref() == Some("bind");
    let has_option = |names: &[&str]| options(mount).any(|option| names.contains(&option));
    (has_type || has_option(&["bind", "rbind"])) && !has_option(&["remount"])
}

/// Whether a bind mount includes the mounts below its source.
pub(crate) fn is_recursive(mount: &Mount) -> bool {
    options(mount).any(|option| option == "rbind")
}

/// The options of a mount, in order.
pub(crate) fn options(mount: &Mount) -> impl DoubleEndedIterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}
