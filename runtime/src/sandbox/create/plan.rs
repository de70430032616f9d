//! The plan of a new container. It follows from the specification, the host's configuration and the caller.

use std::path::PathBuf;

use agent::SeccompFilter;

use super::error::CreateError;
use super::network;
use super::request::CreateRequest;
use crate::base::config::Config;
use crate::base::log::Log;
use crate::files::kernel_views;
use crate::files::shares::{self, HostFiles};
use crate::host::network::NetworkRecord;
use crate::host::network_namespace::NetworkNamespace;
use crate::host::user_namespace::IdMaps;
use crate::sandbox::context::Context;
use crate::sandbox::shared::SharedSandbox;
use crate::sandbox::vmm_process::VmmNamespaces;
use crate::spec::limits::Limits;
use crate::spec::sizing::Size;
use crate::spec::{apparmor, block_io, capabilities, devices, guest, id_mappings, seccomp};

/// The plan for a request. Existing files and namespaces are open; nothing is created yet.
pub(super) struct Plan {
    /// The request, with deprecated settings normalized.
    pub(super) request: CreateRequest,
    pub(super) machine: MachinePlan,
    pub(super) guest: GuestPlan,
}

/// The part of the plan for the host.
pub(super) struct MachinePlan {
    pub(super) config: Config,
    /// The shared sandbox to create the container in; `None` for a sandbox of its own.
    pub(super) shared: Option<SharedSandbox>,
    pub(super) size: Size,
    pub(super) limits: Limits,
    pub(super) namespaces: VmmNamespaces,
    pub(super) network: NetworkRecord,
}

/// The part of the plan for the guest.
pub(super) struct GuestPlan {
    pub(super) files: HostFiles,
    pub(super) seccomp: Option<SeccompFilter>,
}

impl Plan {
    /// Makes the plan, before the container's id is claimed.
    ///
    /// # Errors
    /// The specification is not supported, or a file or namespace that it names cannot be opened.
    pub(super) fn of(mut request: CreateRequest, context: &Context) -> Result<Self, CreateError> {
        let config = context.config()?;
        let shared = SharedSandbox::of(&request.bundle.spec, &context.store)?;
        if let Some(shared) = &shared {
            shared.set_id_mappings(&mut request.bundle.spec, &context.store, &context.log)?;
        }
        let size = if shared.is_some() { Size::NONE } else { Size::of(&request.bundle.spec, &config)? };
        let maps = IdMaps::of(&request.bundle.spec, context.caller)?;
        context.caller.check_kvm()?;
        let namespaces = VmmNamespaces { maps, network: NetworkNamespace::of(&request.bundle.spec)? };
        let network = network::plan(&request, &namespaces, shared.as_ref(), config.anti_spoofing)?;
        request.bundle.normalize_deprecated(&context.log);
        let guest = GuestPlan::of(&request, &namespaces, shared.as_ref(), &context.log)?;
        let limits = Limits::of(&request.bundle.spec, size);
        Ok(Self { request, machine: MachinePlan { config, shared, size, limits, namespaces, network }, guest })
    }
}

impl GuestPlan {
    /// Opens the files of the host, and removes the host's settings from the specification for the guest.
    fn of(
        request: &CreateRequest,
        namespaces: &VmmNamespaces,
        shared: Option<&SharedSandbox>,
        log: &Log,
    ) -> Result<Self, CreateError> {
        let mut files = shares::open_all(&request.id, &request.bundle)?;
        let spec = &mut files.spec;
        guest::remove_host_settings(spec);
        devices::select(spec, log)?;
        warn_of_guest_devices(&files.guest_devices, log);
        kernel_views::warn(&files.guest_views, log);
        if let Some(process) = spec.process_mut() {
            apparmor::remove_default(process, log);
            capabilities::remove_unsupported_ambient(process, log);
        }
        match shared {
            Some(shared) => shared.name_namespaces(spec),
            // In a shared sandbox these limits stay and the guest refuses them: the VMM serves the files of all containers, so no
            // single container may limit its block I/O.
            None => block_io::remove_host_limits(spec),
        }
        if namespaces.maps.belong_to_user {
            id_mappings::map_to_identity(spec);
        }
        let seccomp = guest::take_seccomp(spec).map(|profile| seccomp::compile(&profile)).transpose()?;
        Ok(Self { files, seccomp })
    }
}

fn warn_of_guest_devices(places: &[PathBuf], log: &Log) {
    if !places.is_empty() {
        let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
        log.warn(&format!("the guest's own devices are mounted in the place of the host's: {}", places.join(", ")));
    }
}
