//! Mount options of the runtime specification.

use rustix::mount::MountAttrFlags as Attr;

use crate::sys::mount::MountAttr;

/// The parsed options of one mount.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct MountOptions {
    /// Whether it is a bind mount.
    pub(crate) bind: bool,
    /// Whether a bind mount includes the mounts below its source.
    pub(crate) recursive: bool,
    /// Whether it changes an existing mount.
    pub(crate) remount: bool,
    /// Whether it starts with a copy of the covered directory.
    pub(crate) copy_up: bool,
    /// Whether it is id-mapped; `Some(true)` if the mounts below are mapped, too.
    pub(crate) id_mapped: Option<bool>,
    /// Attributes of the mount.
    pub(crate) attributes: MountAttr,
    /// Attributes of the mount and of all mounts below it.
    pub(crate) recursive_attributes: MountAttr,
    /// Changes of propagation, in order: `MS_*`, and whether they apply to all mounts below.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// Options of the file system: a key with a value, or a flag.
    pub(crate) data: Vec<(String, Option<String>)>,
}

impl MountOptions {
    /// Parses a list. An element may contain several options, separated by commas.
    pub(crate) fn parse(options: &[String]) -> Self {
        let mut parsed = Self::default();
        for option in options.iter().flat_map(|option| option.split(',')).filter(|option| !option.is_empty()) {
            parsed.add(option);
        }
        parsed
    }

    fn add(&mut self, option: &str) {
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            // Defaults, and options that only programs such as mount(8) interpret.
            "defaults" | "async" | "nomand" | "nolazytime" | "noiversion" | "loud" | "silent" => {}
            // Properties of the guest's file systems that a mount cannot change.
            "iversion" | "acl" | "noacl" => {}
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.id_mapped = Some(false),
            "ridmap" => self.id_mapped = Some(true),
            _ => self.add_known_or_data(option),
        }
    }

    fn add_known_or_data(&mut self, option: &str) {
        let recursive = option.strip_prefix('r').filter(|_| option != "ro" && option != "rw" && option != "relatime");
        if let Some(change) = propagation(option) {
            self.propagation.push((change, false));
        } else if let Some(change) = recursive.and_then(propagation) {
            self.propagation.push((change, true));
        } else if let Some((set, clear)) = attribute(option) {
            merge(&mut self.attributes, set, clear);
        } else if let Some((set, clear)) = recursive.and_then(attribute) {
            merge(&mut self.recursive_attributes, set, clear);
        } else {
            let (key, value) = option.split_once('=').map_or((option, None), |(key, value)| (key, Some(value.into())));
            self.data.push((key.into(), value));
        }
    }
}

/// All attributes that are either set or cleared, which excludes the access time modes.
const BINARY_ATTRIBUTES: Attr = Attr::MOUNT_ATTR_RDONLY
    .union(Attr::MOUNT_ATTR_NOSUID)
    .union(Attr::MOUNT_ATTR_NODEV)
    .union(Attr::MOUNT_ATTR_NOEXEC)
    .union(Attr::MOUNT_ATTR_NODIRATIME)
    .union(Attr::MOUNT_ATTR_NOSYMFOLLOW);

impl MountOptions {
    /// The attributes for a remount: attributes that the options do not name are cleared, and access time modes stay as
    /// they are.
    pub(crate) fn all_attributes(&self) -> MountAttr {
        let MountAttr { set, clear, .. } = self.attributes;
        MountAttr::flags(set, clear | u64::from(BINARY_ATTRIBUTES.bits()) & !set)
    }
}

/// Of two contradicting options the later one wins.
fn merge(attributes: &mut MountAttr, set: Attr, clear: Attr) {
    let (set, clear) = (u64::from(set.bits()), u64::from(clear.bits()));
    attributes.set = (attributes.set & !clear) | set;
    attributes.clear = (attributes.clear & !set) | clear;
}

fn propagation(option: &str) -> Option<u64> {
    match option {
        "shared" => Some(libc::MS_SHARED),
        "slave" => Some(libc::MS_SLAVE),
        "private" => Some(libc::MS_PRIVATE),
        "unbindable" => Some(libc::MS_UNBINDABLE),
        _ => None,
    }
}

/// The attributes to set and to clear.
fn attribute(option: &str) -> Option<(Attr, Attr)> {
    let none = Attr::empty();
    Some(match option {
        "ro" => (Attr::MOUNT_ATTR_RDONLY, none),
        "rw" => (none, Attr::MOUNT_ATTR_RDONLY),
        "nosuid" => (Attr::MOUNT_ATTR_NOSUID, none),
        "suid" => (none, Attr::MOUNT_ATTR_NOSUID),
        "nodev" => (Attr::MOUNT_ATTR_NODEV, none),
        "dev" => (none, Attr::MOUNT_ATTR_NODEV),
        "noexec" => (Attr::MOUNT_ATTR_NOEXEC, none),
        "exec" => (none, Attr::MOUNT_ATTR_NOEXEC),
        "nosymfollow" => (Attr::MOUNT_ATTR_NOSYMFOLLOW, none),
        "symfollow" => (none, Attr::MOUNT_ATTR_NOSYMFOLLOW),
        "nodiratime" => (Attr::MOUNT_ATTR_NODIRATIME, none),
        "diratime" => (none, Attr::MOUNT_ATTR_NODIRATIME),
        // The access time modes exclude each other. The kernel requires that all of them are cleared before one is set.
        "noatime" => (Attr::MOUNT_ATTR_NOATIME, Attr::MOUNT_ATTR__ATIME),
        "strictatime" | "norelatime" => (Attr::MOUNT_ATTR_STRICTATIME, Attr::MOUNT_ATTR__ATIME),
        "relatime" | "atime" | "nostrictatime" => (Attr::MOUNT_ATTR_RELATIME, Attr::MOUNT_ATTR__ATIME),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        MountOptions::parse(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
    }

    fn bits(attributes: Attr) -> u64 {
        attributes.bits().into()
    }

    #[test]
    fn attributes_and_file_system_options_are_distinguished() {
        let options = parse(&["nosuid", "strictatime", "mode=755", "size=65536k", "noswap"]);
        assert_eq!(options.attributes.set, bits(Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_STRICTATIME));
        assert_eq!(options.attributes.clear, bits(Attr::MOUNT_ATTR__ATIME));
        let data = [("mode", Some("755")), ("size", Some("65536k")), ("noswap", None)];
        let data = data.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
        assert_eq!(options.data, data);
    }

    #[test]
    fn of_two_contradicting_options_the_last_one_wins() {
        assert_eq!(parse(&["ro", "rw"]).attributes, MountAttr::flags(0, bits(Attr::MOUNT_ATTR_RDONLY)));
        assert_eq!(parse(&["rw,ro"]).attributes, MountAttr::flags(bits(Attr::MOUNT_ATTR_RDONLY), 0));
        let options = parse(&["noatime", "relatime"]);
        assert_eq!(options.attributes.set, 0);
        assert_eq!(options.attributes.clear, bits(Attr::MOUNT_ATTR__ATIME));
    }

    #[test]
    fn recursive_forms_apply_to_everything_below() {
        let options = parse(&["rbind", "rro", "rnosuid", "rprivate", "slave"]);
        assert!(options.bind && options.recursive);
        assert_eq!(options.recursive_attributes.set, bits(Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NOSUID));
        assert_eq!(options.attributes, MountAttr::default());
        assert_eq!(options.propagation, [(libc::MS_PRIVATE, true), (libc::MS_SLAVE, false)]);
    }

    #[test]
    fn a_remount_clears_attributes_that_it_does_not_name() {
        let options = parse(&["bind", "remount", "ro", "noexec"]);
        assert!(options.bind && options.remount);
        let all = options.all_attributes();
        assert_eq!(all.set, bits(Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NOEXEC));
        assert_eq!(all.clear & (all.set | bits(Attr::MOUNT_ATTR__ATIME)), 0);
        assert_ne!(all.clear & bits(Attr::MOUNT_ATTR_NOSUID), 0);
    }

    #[test]
    fn of_two_id_mapping_options_the_last_one_wins() {
        assert_eq!(parse(&["rbind"]).id_mapped, None);
        assert_eq!(parse(&["rbind", "ridmap"]).id_mapped, Some(true));
        assert_eq!(parse(&["ridmap", "idmap"]).id_mapped, Some(false));
    }
}
