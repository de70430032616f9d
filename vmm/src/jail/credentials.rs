//! Ids, capabilities and other privileges of the process and its threads.

use std::io;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use super::JailError;

/// What the file server needs: it creates and changes files of any owner for the guest's processes, whose permissions the guest's
/// kernel has checked. In a user namespace, `MKNOD` covers nothing but overlay whiteouts.
const FILE_SERVER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::MKNOD);

/// Gives the process the user and group id `id`, the file server's capabilities and nothing else, for good. Without an id, the
/// process keeps the one that it has: a user without further ids can give it no other.
pub(super) fn assume(id: Option<u32>) -> Result<(), JailError> {
    lock_secure_bits().map_err(JailError::at("keep capabilities from coming back"))?;
    drop_bounding_set().map_err(JailError::at("drop capabilities from its bounding set"))?;
    drop_groups(id).map_err(JailError::at("drop its supplementary groups"))?;
    if let Some(id) = id {
        assume_id(id).map_err(JailError::at("assume an id of its own"))?;
    }
    set_capabilities(FILE_SERVER).map_err(JailError::at("drop capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(JailError::at("set no_new_privs"))?;
    // No core dump has guest memory, and no other process of the same id may trace this one.
    nix::sys::prctl::set_dumpable(false).map_err(JailError::at("forbid core dumps"))
}

/// Drops all capabilities of the calling thread. The threads of the file server keep theirs.
///
/// # Errors
/// The kernel refused, which it does for no known reason.
pub fn drop_capabilities() -> Result<(), JailError> {
    #[cfg(feature = "unjailed-bench")]
    if super::unjailed::is_chosen() {
        return Ok(());
    }
    set_capabilities(CapabilitySet::empty()).map_err(JailError::at("drop capabilities"))
}

/// Makes the calling thread use files as their owner `root`: a file server that uses files over NFS, or on other file systems that
/// know no capabilities, has the rights that root has there. The thread keeps its capabilities.
///
/// # Errors
/// The thread lacks a capability.
pub fn assume_files_owner() -> io::Result<()> {
    let bits = rustix::thread::capabilities_secure_bits()?;
    if !bits.contains(CapabilitiesSecureBits::NO_SETUID_FIXUP) {
        rustix::thread::set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    }
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    Ok(())
}

/// Ids and `execve` no longer change capabilities.
fn lock_secure_bits() -> rustix::io::Result<()> {
    rustix::thread::set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )
}

fn drop_bounding_set() -> rustix::io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(true) if !FILE_SERVER.contains(capability) => {
                rustix::thread::remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            // The kernel knows no further capability.
            Err(_) => break,
        }
    }
    Ok(())
}

/// A user namespace that a user without further ids made does not allow this, because it could give access to files that are closed
/// to a group. There the process keeps the groups of the user, as all of the user's programs do.
fn drop_groups(id: Option<u32>) -> nix::Result<()> {
    match setgroups(&[]) {
        Err(Errno::EPERM) if id.is_none() => Ok(()),
        result => result,
    }
}

fn assume_id(id: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

fn set_capabilities(capabilities: CapabilitySet) -> rustix::io::Result<()> {
    let sets = CapabilitySets { effective: capabilities, permitted: capabilities, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}
