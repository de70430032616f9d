//! Files of the host that the guest gets: shares, special files, and the replacements of device directories and of views of
//! the host's kernel.

pub(crate) mod device_directories;
pub(crate) mod id_mapped_mounts;
pub(crate) mod kernel_views;
pub(crate) mod shares;
pub(crate) mod special;
