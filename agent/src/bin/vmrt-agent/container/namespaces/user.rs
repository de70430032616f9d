//! User namespaces: the mapping of a container's users and groups to the guest's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{Linux, LinuxIdMapping, Mount};
use rustix::fs::{Gid, OFlags, Uid};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::ThreadNameSpaceType;

use crate::container::namespaces::Namespaces;
use crate::error::Error;
use crate::machine::file_systems::FileSystems;
use crate::sys::clone::{self, Cloned};
use crate::sys::files;

/// The id mappings of a user namespace: a container's, or one for an id-mapped mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct IdMaps {
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl IdMaps {
    /// Checks `linux.uidMappings` and `linux.gidMappings`. Both are required with a user namespace and not allowed
    /// without one.
    pub(crate) fn new(linux: &Linux, namespaces: Namespaces) -> Result<Option<Self>, Error> {
        let maps = Self::from_lists(linux.uid_mappings(), linux.gid_mappings());
        let has_namespace = namespaces.has(ThreadNameSpaceType::USER);
        for (field, list) in [("linux.uidMappings", &maps.uids), ("linux.gidMappings", &maps.gids)] {
            match (has_namespace, list.is_empty()) {
                (true, true) => {
                    return Err(Error::invalid(field, "is missing, and the container has a user namespace"));
                }
                (false, false) => return Err(Error::invalid(field, "needs a user namespace of the container's own")),
                _ => {}
            }
        }
        Ok(has_namespace.then_some(maps))
    }

    /// The mappings of a mount; `None` if it has neither.
    pub(crate) fn of_mount(mount: &Mount) -> Option<Self> {
        Some(Self::from_lists(mount.uid_mappings(), mount.gid_mappings()))
            .filter(|maps| *maps != Self::from_lists(&None, &None))
    }

    fn from_lists(uids: &Option<Vec<LinuxIdMapping>>, gids: &Option<Vec<LinuxIdMapping>>) -> Self {
        Self { uids: uids.clone().unwrap_or_default(), gids: gids.clone().unwrap_or_default() }
    }

    /// Whether both users and groups are mapped.
    pub(crate) fn are_complete(&self) -> bool {
        !self.uids.is_empty() && !self.gids.is_empty()
    }

    /// Writes the mappings of the user namespace of process `pid`, which was just made in it. `owner` names the
    /// namespace in messages, `proc` is the guest's `/proc`.
    pub(crate) fn write(&self, proc: BorrowedFd<'_>, pid: i32, owner: &str) -> Result<(), Error> {
        for (file, list) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            files::write_at(proc, &format!("{pid}/{file}"), map_file_content(list).as_bytes())
                .map_err(Error::at(format!("set the {file} of {owner}")))?;
        }
        Ok(())
    }

    /// The guest's id for a user of the container.
    pub(crate) fn uid(&self, uid: Uid) -> Result<Uid, Error> {
        map_id("linux.uidMappings", &self.uids, uid.as_raw()).map(Uid::from_raw)
    }

    /// The guest's id for a group of the container.
    pub(crate) fn gid(&self, gid: Gid) -> Result<Gid, Error> {
        map_id("linux.gidMappings", &self.gids, gid.as_raw()).map(Gid::from_raw)
    }
}

fn map_id(field: &str, list: &[LinuxIdMapping], id: u32) -> Result<u32, Error> {
    let inside = |map: &&LinuxIdMapping| id.checked_sub(map.container_id()).is_some_and(|offset| offset < map.size());
    let map = list.iter().find(inside).ok_or_else(|| Error::invalid(field, format!("{id} is not mapped")))?;
    Ok(map.host_id() + (id - map.container_id()))
}

/// The format of the kernel: one line for each mapping.
fn map_file_content(list: &[LinuxIdMapping]) -> String {
    list.iter().map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())).collect()
}

/// Makes the caller root of its user namespace. Before, its user has no id in that namespace.
pub(crate) fn become_root() -> Result<(), Error> {
    let step = || "become root of the user namespace";
    rustix::thread::set_thread_groups(&[]).map_err(Error::at(step()))?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(Error::at(step()))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(Error::at(step()))
}

/// User namespaces without processes, as sources of id mappings for mounts. They are removed when dropped; a mount
/// retains the mappings.
pub(crate) struct UserNamespaces<'a> {
    files: &'a FileSystems,
    made: Vec<(IdMaps, OwnedFd)>,
}

impl<'a> UserNamespaces<'a> {
    /// No namespaces yet. `files` are the agent's file systems.
    pub(crate) fn new(files: &'a FileSystems) -> Self {
        Self { files, made: Vec::new() }
    }

    /// The namespace with these mappings, made if necessary. `owner` names the mappings in messages.
    pub(crate) fn get_or_make(&mut self, maps: &IdMaps, owner: &str) -> Result<BorrowedFd<'_>, Error> {
        let index = match self.made.iter().position(|(known, _)| known == maps) {
            Some(index) => index,
            None => {
                self.made.push((maps.clone(), self.make(maps, owner)?));
                self.made.len() - 1
            }
        };
        Ok(self.made[index].1.as_fd())
    }

    /// A process is needed to make a namespace, and ended as soon as there is a descriptor of the namespace.
    fn make(&self, maps: &IdMaps, owner: &str) -> Result<OwnedFd, Error> {
        let step = "make a user namespace";
        let kind = u64::from(ThreadNameSpaceType::USER.bits());
        // SAFETY: the agent has only one thread.
        match unsafe { clone::clone3(kind, None) }.map_err(Error::at(step))? {
            Cloned::Child => loop {
                rustix::event::pause();
            },
            Cloned::Parent(pid, process) => {
                let proc = self.files.proc();
                let written = maps.write(proc, pid, owner);
                let opened = written.and_then(|()| files::open_at(proc, &format!("{pid}/ns/user"), OFlags::RDONLY));
                rustix::process::pidfd_send_signal(&process, Signal::KILL).map_err(Error::at(step))?;
                rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED)
                    .map_err(Error::at(step))?;
                opened
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxBuilder, LinuxIdMappingBuilder, LinuxNamespaceBuilder, LinuxNamespaceType};

    use super::*;

    fn map(container: u32, host: u32, size: u32) -> LinuxIdMapping {
        LinuxIdMappingBuilder::default().container_id(container).host_id(host).size(size).build().unwrap()
    }

    fn namespaces(types: &[LinuxNamespaceType]) -> Namespaces {
        let list = types.iter().map(|typ| LinuxNamespaceBuilder::default().typ(*typ).build().unwrap());
        Namespaces::new(&list.collect::<Vec<_>>()).unwrap().0
    }

    #[test]
    fn mappings_and_a_user_namespace_require_each_other() {
        let (with, without) = (
            namespaces(&[LinuxNamespaceType::Mount, LinuxNamespaceType::User]),
            namespaces(&[LinuxNamespaceType::Mount]),
        );
        let none = LinuxBuilder::default().build().unwrap();
        let maps = LinuxBuilder::default().uid_mappings([map(0, 1000, 10)]).gid_mappings([map(0, 2000, 10)]);
        let maps = maps.build().unwrap();
        assert_eq!(IdMaps::new(&none, without).unwrap(), None);
        assert!(IdMaps::new(&none, with).unwrap_err().to_string().starts_with("linux.uidMappings: is missing"));
        assert!(IdMaps::new(&maps, without).unwrap_err().to_string().contains("needs a user namespace"));
        assert!(IdMaps::new(&maps, with).unwrap().is_some());
    }

    #[test]
    fn ids_are_mapped_as_in_the_kernel() {
        let maps = IdMaps { uids: vec![map(0, 1000, 1), map(1, 100_000, 65_535)], gids: vec![map(0, 0, 1)] };
        let uid = |id| maps.uid(Uid::from_raw(id)).map(Uid::as_raw).map_err(|error| error.to_string());
        assert_eq!((uid(0), uid(1), uid(65_535)), (Ok(1000), Ok(100_000), Ok(165_534)));
        assert!(uid(65_536).unwrap_err().contains("65536"));
        assert_eq!(map_file_content(&maps.uids), "0 1000 1\n1 100000 65535\n");
    }
}
