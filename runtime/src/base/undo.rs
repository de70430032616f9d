//! What has to be taken back when a later step fails.

/// Steps that were taken, each with its way back; they are taken back in reverse order unless kept.
#[derive(Default)]
pub(crate) struct Undo {
    ways_back: Vec<Box<dyn FnOnce()>>,
}

impl Undo {
    /// Remembers how to take back the step that was just taken.
    pub(crate) fn push(&mut self, way_back: impl FnOnce() + 'static) {
        self.ways_back.push(Box::new(way_back));
    }

    /// Nothing is to be taken back any more.
    pub(crate) fn keep(mut self) {
        self.ways_back.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(way_back) = self.ways_back.pop() {
            way_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    fn record(undo: &mut Undo, to: &Rc<RefCell<Vec<u8>>>, step: u8) {
        let to = to.clone();
        undo.push(move || to.borrow_mut().push(step));
    }

    #[test]
    fn steps_are_taken_back_last_first() {
        let taken_back = Rc::default();
        let mut undo = Undo::default();
        record(&mut undo, &taken_back, 1);
        record(&mut undo, &taken_back, 2);
        drop(undo);
        assert_eq!(*taken_back.borrow(), [2, 1]);
    }

    #[test]
    fn kept_steps_stay() {
        let taken_back = Rc::default();
        let mut undo = Undo::default();
        record(&mut undo, &taken_back, 1);
        undo.keep();
        assert!(taken_back.borrow().is_empty());
    }
}
