//! What a filter does with a system call.

/// `SECCOMP_RET_*` with its data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Action(pub(super) u32);

/// The action without data that ends the thread.
pub(super) const KILL_THREAD: Action = Action(0);
