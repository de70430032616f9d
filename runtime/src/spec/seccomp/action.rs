//! Actions of a filter.

/// The return value of a filter: `SECCOMP_RET_*` with its data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Action(pub(super) u32);

/// `SECCOMP_RET_KILL_THREAD`.
pub(super) const KILL_THREAD: Action = Action(0);
