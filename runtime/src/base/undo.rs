//! A stack of undo steps, for an operation that may fail in a later step.

/// Undo steps. Dropping the stack runs them, the last one first.
#[derive(Default)]
pub(crate) struct UndoStack {
    steps: Vec<Box<dyn FnOnce()>>,
}

impl UndoStack {
    /// Adds the undo step of what was just done.
    pub(crate) fn push(&mut self, undo: impl FnOnce() + 'static) {
        self.steps.push(Box::new(undo));
    }

    /// Discards all undo steps without running them.
    pub(crate) fn discard(&mut self) {
        self.steps.clear();
    }
}

impl Drop for UndoStack {
    fn drop(&mut self) {
        while let Some(undo) = self.steps.pop() {
            undo();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    fn record(undo: &mut UndoStack, to: &Rc<RefCell<Vec<u8>>>, step: u8) {
        let to = to.clone();
        undo.push(move || to.borrow_mut().push(step));
    }

    #[test]
    fn undo_steps_run_last_first() {
        let undone = Rc::default();
        let mut undo = UndoStack::default();
        record(&mut undo, &undone, 1);
        record(&mut undo, &undone, 2);
        drop(undo);
        assert_eq!(*undone.borrow(), [2, 1]);
    }

    #[test]
    fn discarded_steps_do_not_run() {
        let undone = Rc::default();
        let mut undo = UndoStack::default();
        record(&mut undo, &undone, 1);
        undo.discard();
        drop(undo);
        assert!(undone.borrow().is_empty());
    }
}
