//! Files of the host that the guest gets: shares, special files, and what replaces directories of devices.

pub(crate) mod device_directories;
pub(crate) mod id_mapped_mounts;
pub(crate) mod shares;
pub(crate) mod special;
