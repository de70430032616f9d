//! The plan of a new container: everything that follows from its specification, the machine's configuration and the caller.

use std::path::PathBuf;

use agent::SeccompFilter;

use super::error::CreateError;
use super::network;
use super::request::CreateRequest;
use crate::base::config::Config;
use crate::base::log::Log;
use crate::files::shares::{self, HostFiles};
use crate::host::network::NetworkRecord;
use crate::host::network_namespace::NetworkNamespace;
use crate::host::user_namespace::UserNamespace;
use crate::sandbox::context::Context;
use crate::sandbox::shared::SharedSandbox;
use crate::sandbox::vmm_process::Place;
use crate::spec::limits::Limits;
use crate::spec::sizing::Size;
use crate::spec::{apparmor, block_io, capabilities, devices, guest, id_mappings, seccomp};

/// What to make of a request. Files and namespaces that exist are open; nothing was made.
pub(super) struct Plan {
    /// With its deprecated settings normalized.
    pub(super) request: CreateRequest,
    pub(super) machine: MachinePlan,
    pub(super) guest: GuestPlan,
}

/// What to make on the host.
pub(super) struct MachinePlan {
    pub(super) config: Config,
    /// The sandbox to make the container in, where it does not get one of its own.
    pub(super) shared: Option<SharedSandbox>,
    pub(super) size: Size,
    pub(super) limits: Limits,
    pub(super) place: Place,
    pub(super) network: NetworkRecord,
}

/// What the guest gets.
pub(super) struct GuestPlan {
    pub(super) files: HostFiles,
    pub(super) seccomp: Option<SeccompFilter>,
}

impl Plan {
    /// Decides everything that can be decided before the container's id is claimed.
    pub(super) fn of(mut request: CreateRequest, context: &Context) -> Result<Self, CreateError> {
        let config = context.config()?;
        let shared = SharedSandbox::of(&request.bundle.spec, &context.store)?;
        if let Some(shared) = &shared {
            shared.set_id_mappings(&mut request.bundle.spec, &context.store, &context.log)?;
        }
        let size = if shared.is_some() { Size::NONE } else { Size::of(&request.bundle.spec, &config)? };
        let user = UserNamespace::of(&request.bundle.spec, context.caller)?;
        context.caller.check_kvm()?;
        let place = Place { user, network: NetworkNamespace::of(&request.bundle.spec)? };
        let network = network::plan(&request, &place, shared.as_ref())?;
        request.bundle.normalize_deprecated(&context.log);
        let guest = GuestPlan::of(&request, &place, shared.as_ref(), &context.log)?;
        let limits = Limits::of(&request.bundle.spec, size);
        Ok(Self { request, machine: MachinePlan { config, shared, size, limits, place, network }, guest })
    }
}

impl GuestPlan {
    /// Opens the files of the host and reduces the specification to what the guest does.
    fn of(
        request: &CreateRequest,
        place: &Place,
        shared: Option<&SharedSandbox>,
        log: &Log,
    ) -> Result<Self, CreateError> {
        let mut files = shares::open_all(&request.id, &request.bundle)?;
        let spec = &mut files.spec;
        guest::remove_host_settings(spec);
        devices::select(spec, log)?;
        warn_of_guest_devices(&files.guest_devices, log);
        if let Some(process) = spec.process_mut() {
            apparmor::remove_default(process, log);
            capabilities::remove_unsupported_ambient(process, log);
        }
        match shared {
            Some(shared) => shared.name_namespaces(spec),
            // The VMM of a shared sandbox serves the files of all its containers, so that none of them may limit it: the guest
            // refuses these limits.
            None => block_io::remove_host_limits(spec),
        }
        if place.user.is_some() {
            id_mappings::map_to_identity(spec);
        }
        let seccomp = guest::take_seccomp(spec).map(|profile| seccomp::compile(&profile)).transpose()?;
        Ok(Self { files, seccomp })
    }
}

fn warn_of_guest_devices(places: &[PathBuf], log: &Log) {
    if !places.is_empty() {
        let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        log.warn(&format!("the guest's own devices are mounted in the place of the host's: {}", places.join(", ")));
    }
}
