//! The five capability sets of a process.

use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::error::Error;

/// The sets of the specification. Absent ones are empty.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct CapabilityPlan {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

impl CapabilityPlan {
    /// Converts the specification's sets.
    pub(crate) fn new(sets: Option<&LinuxCapabilities>) -> Self {
        let set = |set: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
            let set = sets.and_then(|sets| set(sets).as_ref());
            set.into_iter().flatten().filter_map(|one| CapabilitySet::from_name(&one.to_string())).collect()
        };
        let (permitted, inheritable) = (set(LinuxCapabilities::permitted), set(LinuxCapabilities::inheritable));
        Self {
            bounding: set(LinuxCapabilities::bounding),
            effective: set(LinuxCapabilities::effective),
            permitted,
            inheritable,
            // The kernel refuses other ones. runc's default specification contains some, and runc drops them as well.
            ambient: set(LinuxCapabilities::ambient).intersection(permitted).intersection(inheritable),
        }
    }

    /// Limits the bounding set. This needs a capability that the change of the user may remove.
    pub(crate) fn apply_bounding(&self) -> Result<(), Error> {
        for capability in CapabilitySet::all().difference(self.bounding).iter() {
            match remove_capability_from_bounding_set(capability) {
                // The guest's kernel does not have this capability.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(Error::at("limit the bounding capability set")(error)),
            }
        }
        Ok(())
    }

    /// Sets the other four sets.
    pub(crate) fn apply(&self) -> Result<(), Error> {
        let Self { effective, permitted, inheritable, .. } = *self;
        set_capabilities(None, CapabilitySets { effective, permitted, inheritable })
            .map_err(Error::at("set capabilities"))?;
        clear_ambient_capability_set().map_err(Error::at("clear the ambient capability set"))?;
        for capability in self.ambient.iter() {
            configure_capability_in_ambient_set(capability, true)
                .map_err(Error::at("set the ambient capability set"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Capability, LinuxCapabilitiesBuilder};

    use super::*;

    #[test]
    fn capabilities_of_the_specification_are_converted() {
        let one = |capability| {
            let sets = LinuxCapabilitiesBuilder::default().bounding(Capabilities::from([capability])).build().unwrap();
            CapabilityPlan::new(Some(&sets)).bounding
        };
        assert_eq!(one(Capability::Chown), CapabilitySet::CHOWN);
        assert_eq!(one(Capability::SysAdmin), CapabilitySet::SYS_ADMIN);
        assert_eq!(one(Capability::CheckpointRestore), CapabilitySet::CHECKPOINT_RESTORE);
        assert_eq!(one(Capability::AuditRead), CapabilitySet::AUDIT_READ);
    }

    #[test]
    fn ambient_capabilities_have_to_be_inheritable() {
        let one = || Capabilities::from([Capability::Kill]);
        let sets = || LinuxCapabilitiesBuilder::default().permitted(one()).ambient(one());
        let without = sets().inheritable(Capabilities::new()).build().unwrap();
        assert_eq!(CapabilityPlan::new(Some(&without)).ambient, CapabilitySet::empty());
        let with = sets().inheritable(one()).build().unwrap();
        assert_eq!(CapabilityPlan::new(Some(&with)).ambient, CapabilitySet::KILL);
    }

    #[test]
    fn absent_sets_are_empty() {
        assert_eq!(CapabilityPlan::new(None).bounding, CapabilitySet::empty());
    }
}
