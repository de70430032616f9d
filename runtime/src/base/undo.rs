//! Undoing steps when a later one fails.

/// How to undo the steps that were done. Dropping it undoes them in reverse order.
#[derive(Default)]
pub(crate) struct UndoStack {
    steps: Vec<Box<dyn FnOnce()>>,
}

impl UndoStack {
    /// Adds how to undo the step that was just done.
    pub(crate) fn push(&mut self, undo: impl FnOnce() + 'static) {
        self.steps.push(Box::new(undo));
    }

    /// Keeps what was done: nothing is undone any more.
    pub(crate) fn discard(mut self) {
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
    fn steps_are_undone_last_first() {
        let undone = Rc::default();
        let mut undo = UndoStack::default();
        record(&mut undo, &undone, 1);
        record(&mut undo, &undone, 2);
        drop(undo);
        assert_eq!(*undone.borrow(), [2, 1]);
    }

    #[test]
    fn kept_steps_stay() {
        let undone = Rc::default();
        let mut undo = UndoStack::default();
        record(&mut undo, &undone, 1);
        undo.discard();
        assert!(undone.borrow().is_empty());
    }
}
