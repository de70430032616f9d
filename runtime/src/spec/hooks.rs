//! `hooks`: when each kind runs, what must hold of all of them, and which of them the guest runs.

use oci_spec::runtime::{ContainerState, Hook, Hooks, Spec};

use super::error::BundleError;

/// When hooks run on the host. `startContainer` hooks run in the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HookPoint {
    /// The machine's process and its network namespace exist, and nothing runs in it.
    Prestart,
    CreateRuntime,
    /// The same, but in the container's namespaces as far as the host has them: the network namespace.
    CreateContainer,
    /// The container's program was started.
    Poststart,
    /// Nothing is left of the container.
    Poststop,
}

impl HookPoint {
    const ALL: [Self; 5] =
        [Self::Prestart, Self::CreateRuntime, Self::CreateContainer, Self::Poststart, Self::Poststop];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    pub(crate) fn status(self) -> ContainerState {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => ContainerState::Creating,
            Self::Poststart => ContainerState::Running,
            Self::Poststop => ContainerState::Stopped,
        }
    }

    pub(crate) fn of(self, hooks: &Hooks) -> &[Hook] {
        #[allow(deprecated, reason = "engines still write prestart hooks")]
        let prestart = hooks.prestart();
        let hooks = match self {
            Self::Prestart => prestart,
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        hooks.as_deref().unwrap_or_default()
    }
}

/// Checks every hook, those of the guest included.
pub(crate) fn check(hooks: &Hooks) -> Result<(), BundleError> {
    let on_host = HookPoint::ALL.into_iter().map(|point| (point.name(), point.of(hooks)));
    let in_guest = ("startContainer", hooks.start_container().as_deref().unwrap_or_default());
    for (point, hook) in
        on_host.chain([in_guest]).flat_map(|(point, hooks)| hooks.iter().map(move |hook| (point, hook)))
    {
        if !hook.path().is_absolute() {
            return Err(BundleError::Hook { point, reason: format!("path {:?} is not absolute", hook.path()) });
        }
        if hook.timeout().is_some_and(|timeout| timeout <= 0) {
            return Err(BundleError::Hook { point, reason: "timeout is not greater than zero".into() });
        }
    }
    Ok(())
}

/// Removes from the guest's specification the hooks that the host runs.
pub(crate) fn retain_guest_hooks(spec: &mut Spec) {
    let of_guest = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().clone());
    spec.set_hooks(of_guest.filter(|hooks| !hooks.is_empty()).map(|hooks| {
        let mut left = Hooks::default();
        left.set_start_container(Some(hooks));
        left
    }));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_guest_gets_its_own_hooks_only() {
        let mut spec = Spec::default();
        let hooks = |value| Some(serde_json::from_value::<Hooks>(value).unwrap());
        let guests = json!([{"path": "/in"}]);
        spec.set_hooks(hooks(json!({"prestart": [{"path": "/out"}], "startContainer": guests})));
        retain_guest_hooks(&mut spec);
        assert_eq!(*spec.hooks(), hooks(json!({"startContainer": guests})));
        spec.set_hooks(hooks(json!({"prestart": [{"path": "/out"}], "startContainer": []})));
        retain_guest_hooks(&mut spec);
        assert_eq!(*spec.hooks(), None);
    }
}
