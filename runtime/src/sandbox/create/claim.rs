//! The claim on a container's id: its locked directory, and the undo stack of the creation.

use super::error::CreateError;
use super::request::CreateRequest;
use crate::base::undo::UndoStack;
use crate::sandbox::shared::SharedSandbox;
use crate::sandbox::store::{LockedDir, Store, remove_dir};

/// A container's locked directory, and the steps to undo. Dropping it undoes them; see [`Self::commit`].
pub(super) struct Claim {
    // Fields are dropped in this order: everything is undone before the lock is released.
    pub(super) undo: UndoStack,
    pub(super) locked: LockedDir,
}

impl Claim {
    /// Claims the id of the new container. Copies the specification into its directory, and links the control socket of a shared
    /// sandbox there.
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

    /// Discards the undo steps: dropping the claim then only releases the lock.
    pub(super) fn commit(&mut self) {
        self.undo.discard();
    }
}
