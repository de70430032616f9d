//! `mounts`.

use oci_spec::runtime::Mount;

/// Whether it makes a bind mount. A remount only changes an existing one.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    let kind = mount.typ().as_deref() == Some("bind");
    let option = |wanted: &[&str]| options(mount).any(|option| wanted.contains(&option));
    (kind || option(&["bind", "rbind"])) && !option(&["remount"])
}

/// Its options, in their order.
pub(crate) fn options(mount: &Mount) -> impl DoubleEndedIterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}
