//! Time namespaces, whose clocks may differ from the guest's.

use std::collections::HashMap;

use oci_spec::runtime::LinuxTimeOffset;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use crate::container::namespaces::Namespaces;
use crate::error::Error;
use crate::machine::file_systems::GuestFds;
use crate::sys::files;

/// The offsets of a container's clocks, as lines of the kernel's `timens_offsets`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct TimeOffsets(Vec<String>);

impl TimeOffsets {
    /// Checks `linux.timeOffsets`.
    pub(crate) fn new(offsets: &HashMap<String, LinuxTimeOffset>, namespaces: Namespaces) -> Result<Self, Error> {
        let invalid = |clock: &str, reason: &str| Err(Error::invalid(format!("linux.timeOffsets: {clock}"), reason));
        let mut lines = Vec::new();
        for (clock, offset) in offsets {
            let nanoseconds = offset.nanosecs().unwrap_or(0);
            match clock.as_str() {
                _ if !namespaces.owns(ThreadNameSpaceType::TIME) => {
                    return invalid(clock, "needs a time namespace of the container's own");
                }
                "monotonic" | "boottime" if nanoseconds >= 1_000_000_000 => {
                    return invalid(clock, "nanosecs is not less than a second");
                }
                "monotonic" | "boottime" => {
                    lines.push(format!("{clock} {} {nanoseconds}\n", offset.secs().unwrap_or(0)));
                }
                _ => return invalid(clock, "is no clock that can be set"),
            }
        }
        lines.sort_unstable();
        Ok(Self(lines))
    }
}

/// Runs `spawn` so that it makes a process in a new time namespace, if `namespaces` contains one of the container's
/// own.
///
/// The kernel fixes the clocks of a time namespace when the first process enters it. So the agent makes the namespace
/// for its future children, sets the clocks, makes the process, and resets the namespace for children to its own.
pub(crate) fn with_offsets<T>(
    guest: GuestFds<'_>,
    namespaces: Namespaces,
    offsets: &TimeOffsets,
    spawn: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    if !namespaces.owns(ThreadNameSpaceType::TIME) {
        return spawn();
    }
    // SAFETY: changes only the namespace of future children; no memory or descriptor is affected.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWTIME) }.map_err(Error::at("make a time namespace"))?;
    let spawned = offsets.set(guest).and_then(|()| spawn());
    rustix::thread::move_into_thread_name_spaces(guest.agent, ThreadNameSpaceType::TIME)
        .map_err(Error::at("return to the guest's time namespace"))?;
    spawned
}

impl TimeOffsets {
    fn set(&self, guest: GuestFds<'_>) -> Result<(), Error> {
        match self.0.is_empty() {
            true => Ok(()),
            false => files::write_at(guest.proc, "self/timens_offsets", self.0.concat().as_bytes())
                .map_err(Error::at(format!("set the clocks to {:?}", self.0.concat()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType};

    use super::*;

    fn offsets(clock: &str, nanoseconds: u32, kinds: &[LinuxNamespaceType]) -> Result<TimeOffsets, String> {
        let mut offset = LinuxTimeOffset::default();
        offset.set_secs(Some(-5)).set_nanosecs(Some(nanoseconds));
        let list = kinds.iter().map(|kind| LinuxNamespaceBuilder::default().typ(*kind).build().unwrap());
        let namespaces = Namespaces::new(&list.collect::<Vec<_>>()).unwrap().0;
        TimeOffsets::new(&[(clock.to_owned(), offset)].into(), namespaces).map_err(|error| error.to_string())
    }

    #[test]
    fn offsets_become_lines_for_the_kernel() {
        let own = [LinuxNamespaceType::Mount, LinuxNamespaceType::Time];
        assert_eq!(offsets("boottime", 7, &own).unwrap().0, ["boottime -5 7\n"]);
        assert_eq!(
            offsets("realtime", 0, &own).unwrap_err(),
            "linux.timeOffsets: realtime: is no clock that can be set"
        );
        assert!(offsets("monotonic", 1_000_000_000, &own).unwrap_err().contains("nanosecs"));
    }

    #[test]
    fn offsets_need_a_time_namespace() {
        let error = offsets("monotonic", 0, &[LinuxNamespaceType::Mount]).unwrap_err();
        assert_eq!(error, "linux.timeOffsets: monotonic: needs a time namespace of the container's own");
    }
}
