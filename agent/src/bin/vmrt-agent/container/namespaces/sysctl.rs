//! Kernel parameters of a container, which belong to its namespaces.

use std::os::fd::BorrowedFd;

use rustix::thread::ThreadNameSpaceType;

use crate::container::namespaces::Namespaces;
use crate::error::Error;
use crate::sys::files;

/// Parameters of an IPC namespace.
const IPC: [&str; 10] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.msg_next_id",
    "kernel.sem_next_id",
];

/// The parameter that allows a network namespace the use of vsock: see `guest-kernel-config/patches`.
const VSOCK: &str = "net/vsock/enabled";

/// A parameter to set: its name, its file below `/proc/sys` and its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Sysctl {
    name: String,
    file: String,
    value: String,
}

impl Sysctl {
    /// Checks a parameter. Refuses one that would affect more than the container.
    pub(crate) fn new(name: &str, value: &str, namespaces: Namespaces) -> Result<Self, Error> {
        let invalid = |reason| Error::invalid(format!("linux.sysctl: {name}"), reason);
        // The first separator decides which of the two is used. The other one is part of a name, as in
        // `net.ipv4.conf.eth0/1.forwarding`.
        let file = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
            Some(b'.') => name.chars().map(swap_separator).collect(),
            _ => name.to_owned(),
        };
        let dotted = file.replace('/', ".");
        if dotted == "kernel.hostname" {
            return Err(invalid("is not allowed, as it conflicts with the field `hostname`"));
        }
        let needed = if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        } else if dotted.starts_with("net.") {
            ThreadNameSpaceType::NETWORK
        } else if dotted == "kernel.domainname" {
            ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        } else {
            return Err(invalid("belongs to no namespace of a container"));
        };
        if !namespaces.has(needed) {
            return Err(invalid("the container has no namespace of its own for it"));
        }
        if file.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(invalid("is not the name of a parameter"));
        }
        Ok(Self { name: name.into(), file, value: value.into() })
    }

    /// Whether the agent has to set the parameter: a process in the container's user namespace may not.
    pub(crate) fn needs_agent(&self) -> bool {
        self.file == VSOCK
    }

    /// Sets the parameter in the caller's namespaces; `proc` is any `/proc`.
    pub(crate) fn set(&self, proc: BorrowedFd<'_>) -> Result<(), Error> {
        files::write_at(proc, &format!("sys/{}", self.file), self.value.as_bytes())
            .map_err(Error::at(format!("set sysctl {}", self.name)))
    }
}

fn swap_separator(letter: char) -> char {
    match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType, get_default_namespaces};

    use super::*;

    #[test]
    fn a_name_becomes_the_path_of_its_file() {
        let namespaces = Namespaces::new(&get_default_namespaces()).unwrap().0;
        let file = |name| Sysctl::new(name, "1", namespaces).map(|sysctl| sysctl.file);
        assert_eq!(file("net.ipv4.conf.eth0/1.forwarding").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(file("net/ipv4/ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert!(file("net/../kernel/panic").is_err());
        assert!(file("net...kernel").is_err());
    }

    #[test]
    fn only_the_agent_can_set_the_parameter_of_vsock() {
        let namespaces = Namespaces::new(&get_default_namespaces()).unwrap().0;
        let needs_agent = |name| Sysctl::new(name, "1", namespaces).unwrap().needs_agent();
        assert!(needs_agent("net.vsock.enabled") && needs_agent("net/vsock/enabled"));
        assert!(!needs_agent("net.ipv4.ip_forward"));
    }

    #[test]
    fn parameters_outside_the_containers_namespaces_are_refused_by_name() {
        let mount = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Mount).build().unwrap();
        let guests = Namespaces::new(&[mount]).unwrap().0;
        let error = Sysctl::new("net.ipv4.ip_forward", "1", guests).unwrap_err();
        assert!(error.to_string().starts_with("linux.sysctl: net.ipv4.ip_forward"));
        let own = Namespaces::new(&get_default_namespaces()).unwrap().0;
        assert!(Sysctl::new("kernel.panic", "1", own).is_err());
        let error = Sysctl::new("kernel.hostname", "box", own).unwrap_err().to_string();
        assert!(error.contains("conflicts with the field `hostname`"), "{error}");
    }
}
