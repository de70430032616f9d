//! Hooks, `hooks`: when each kind runs, the checks of all of them, and which of them the guest runs.

use oci_spec::runtime::{ContainerState, Hook, Hooks, Spec};

use super::error::BundleError;

/// The kinds of hooks that run on the host. `startContainer` hooks run in the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HookPoint {
    /// Runs when the VMM process and its network namespace exist, and before the guest boots.
    Prestart,
    /// Runs after `prestart` hooks, at the same point.
    CreateRuntime,
    /// Runs after `createRuntime` hooks, in the container's network namespace: the host has no other namespace of it.
    CreateContainer,
    /// Runs after the container's program has started.
    Poststart,
    /// Runs after the container is deleted.
    Poststop,
}

impl HookPoint {
    const ALL: [Self; 5] =
        [Self::Prestart, Self::CreateRuntime, Self::CreateContainer, Self::Poststart, Self::Poststop];

    /// The name in the specification.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The status of the container in the state that the hook gets.
    pub(crate) fn status(self) -> ContainerState {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => ContainerState::Creating,
            Self::Poststart => ContainerState::Running,
            Self::Poststop => ContainerState::Stopped,
        }
    }

    /// The hooks of this kind.
    pub(crate) fn of(self, hooks: &Hooks) -> &[Hook] {
        let hooks = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        hooks.as_deref().unwrap_or_default()
    }
}

/// Checks all hooks, including those that the guest runs.
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
    let start_container = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().clone());
    spec.set_hooks(start_container.filter(|hooks| !hooks.is_empty()).map(|hooks| {
        let mut guest_hooks = Hooks::default();
        guest_hooks.set_start_container(Some(hooks));
        guest_hooks
    }));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_guest_gets_start_container_hooks_only() {
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
