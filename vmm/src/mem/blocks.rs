//! The state of the region's blocks: plugged or unplugged.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::BLOCK_SIZE;

/// The state of a range of blocks, with the values of section 5.15.6.4.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}

/// Consecutive plugged blocks, as saved: the number of the first, and the count.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PluggedRun {
    first: usize,
    count: usize,
}

/// All blocks of a region.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Guest-physical address of the first block.
    start: u64,
    plugged: Vec<bool>,
    count: u64,
}

impl Blocks {
    /// The blocks of a region of `length` bytes at `start`, all unplugged.
    pub(super) fn new(start: u64, length: u64) -> Self {
        let blocks = usize::try_from(length / BLOCK_SIZE).expect("the region is mapped in this process");
        Self { start, plugged: vec![false; blocks], count: 0 }
    }

    /// The `count` blocks from guest-physical `address`. `None` if they are not blocks of the region.
    pub(super) fn range(&self, address: u64, count: u16) -> Option<Range<usize>> {
        let offset = address.checked_sub(self.start).filter(|offset| offset % BLOCK_SIZE == 0)?;
        let first = usize::try_from(offset / BLOCK_SIZE).ok()?;
        let end = first.checked_add(usize::from(count))?;
        (count > 0 && end <= self.plugged.len()).then_some(first..end)
    }

    /// All blocks.
    pub(super) fn all(&self) -> Range<usize> {
        0..self.plugged.len()
    }

    pub(super) fn state(&self, range: Range<usize>) -> State {
        let mut blocks = self.plugged[range].iter();
        match (blocks.clone().any(|plugged| *plugged), blocks.all(|plugged| *plugged)) {
            (_, true) => State::Plugged,
            (false, _) => State::Unplugged,
            (true, false) => State::Mixed,
        }
    }

    pub(super) fn set(&mut self, range: Range<usize>, plugged: bool) {
        for block in &mut self.plugged[range] {
            let was = std::mem::replace(block, plugged);
            self.count = self.count + u64::from(plugged) - u64::from(was);
        }
    }

    /// Bytes plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.count * BLOCK_SIZE
    }

    /// Whether the block is plugged.
    pub(super) fn is_plugged(&self, block: usize) -> bool {
        self.plugged[block]
    }

    /// The longest ranges of blocks that are all plugged, or all unplugged.
    pub(super) fn runs(&self, plugged: bool) -> Vec<Range<usize>> {
        let mut first = 0;
        let mut runs = Vec::new();
        for same in self.plugged.chunk_by(|one, next| one == next) {
            if same[0] == plugged {
                runs.push(first..first + same.len());
            }
            first += same.len();
        }
        runs
    }

    pub(super) fn save(&self) -> Vec<PluggedRun> {
        self.runs(true).into_iter().map(|run| PluggedRun { first: run.start, count: run.len() }).collect()
    }

    /// The blocks of a saved run, as far as the region has them.
    pub(super) fn saved_range(&self, run: PluggedRun) -> Range<usize> {
        let max = self.plugged.len();
        run.first.min(max)..run.first.saturating_add(run.count).min(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 4 << 30;

    fn blocks() -> Blocks {
        Blocks::new(START, 8 * BLOCK_SIZE)
    }

    #[test]
    fn a_range_is_whole_blocks_of_the_region() {
        let blocks = blocks();
        assert_eq!(blocks.range(START, 8), Some(0..8));
        assert_eq!(blocks.range(START + 7 * BLOCK_SIZE, 1), Some(7..8));
        for (address, count) in [
            (START, 0),
            (START, 9),
            (START, u16::MAX),
            (START + 7 * BLOCK_SIZE, 2),
            (START + 8 * BLOCK_SIZE, 1),
            (START + 4096, 1),
            (START - BLOCK_SIZE, 1),
            (0, 1),
            (u64::MAX - (BLOCK_SIZE - 1), 1),
            (u64::MAX, u16::MAX),
        ] {
            assert_eq!(blocks.range(address, count), None, "{address:#x}, {count}");
        }
    }

    #[test]
    fn blocks_are_counted_once() {
        let mut blocks = blocks();
        blocks.set(1..4, true);
        blocks.set(3..5, true);
        assert_eq!(blocks.plugged(), 4 * BLOCK_SIZE);
        assert_eq!(blocks.state(1..5), State::Plugged);
        assert_eq!(blocks.state(5..8), State::Unplugged);
        assert_eq!((blocks.state(0..2), blocks.state(4..6)), (State::Mixed, State::Mixed));
        blocks.set(0..3, false);
        assert_eq!((blocks.plugged(), blocks.state(0..3)), (2 * BLOCK_SIZE, State::Unplugged));
    }

    #[test]
    fn saved_blocks_are_restored_as_far_as_the_region_has_them() {
        let mut before = blocks();
        before.set(0..2, true);
        before.set(5..8, true);
        let ranges: Vec<_> = before.save().into_iter().map(|run| blocks().saved_range(run)).collect();
        assert_eq!(ranges, [0..2, 5..8]);
        assert_eq!(before.runs(false).first(), Some(&(2..5)));
        let small = Blocks::new(START, 6 * BLOCK_SIZE);
        assert_eq!(small.saved_range(PluggedRun { first: 5, count: usize::MAX }), 5..6);
        assert!(small.saved_range(PluggedRun { first: usize::MAX, count: 2 }).is_empty());
    }
}
