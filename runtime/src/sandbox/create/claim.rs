//! The claim on a container's id: its directory, and the stack of what to undo there and elsewhere.

use super::error::CreateError;
use super::request::CreateRequest;
use crate::base::undo::UndoStack;
use crate::sandbox::shared::SharedSandbox;
use crate::sandbox::store::{Locked, Store, remove_dir};

/// A container's directory, locked, and what to undo unless the container is kept.
pub(super) struct Claim {
    // In this order: everything is undone before the lock is released.
    pub(super) undo: UndoStack,
    pub(super) locked: Locked,
}

impl Claim {
    /// Claims the id. The specification is copied into the directory, and the control socket of a shared sandbox linked there.
    pub(super) fn of(
        request: &CreateRequest,
        shared: Option<&SharedSandbox>,
        store: &Store,
    ) -> Result<Self, CreateError> {
        let locked = store.claim(&request.id)?;
        let mut undo = UndoStack::default();
        let dir = locked.dir.clone();
        undo.push(move || drop(remove_dir(&dir)));
        let claim = Self { undo, locked };
        claim.locked.write_spec(&request.bundle.spec)?;
        shared.map_or(Ok(()), |shared| shared.link(&claim.locked.dir))?;
        Ok(claim)
    }

    /// Releases the lock and undoes nothing.
    pub(super) fn keep(self) {
        self.undo.discard();
    }
}
