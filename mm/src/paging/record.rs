// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The record of each block of guest memory: where its contents are, and which thread is moving
//! them.
//!
//! ```text
//!              begin_leaving            left                begin_packing
//!   Present ────────────────▶ Leaving ──────▶ Out ────────────────────────▶ Packing
//!    ▲  ▲ ▲                      │             │                             │   │ packed
//!    │  │ └──────────────────────┘ returned    │ begin_filling      returned │   ▼
//!    │  └──────────────────────────────────────┼─────────────────────────────┘ Absent ◀─ start
//!    │               filled                    ▼                                 │  (lazy restore)
//!    └───────────────────────────────────── Filling ◀───────────────────────────▶┘
//!                                              │ lost     begin_filling, not_filled
//!                                              ▼
//!                                            Lost
//! ```
//!
//! Leaving and Packing belong to one evicting thread, Filling to the thread that fills; others may
//! only mark the block as wanted. Pages of a Present block that are not in host memory read as
//! zero, as private memory does. Single pages of an Absent block may be in place.

use crate::blocks::mask::PageMask;

use super::absence::{Absence, SourceId};
use super::states::{BlockState, Counts};

/// One block.
#[derive(Clone, Debug)]
struct BlockEntry {
    state: BlockState,
    /// Faults on it are reported to the pager.
    registered: bool,
    /// A thread stores its pages from staging: others must not store any.
    storing: bool,
    /// What the guest used of it when it was absent last, until it is absent again.
    used: Option<Box<PageMask>>,
}

/// The record of all blocks. A transition that the diagram does not have is a bug and panics.
#[derive(Debug)]
pub(super) struct Record {
    blocks: Vec<BlockEntry>,
    counts: Counts,
}

impl Record {
    /// Of `blocks` blocks, all present.
    pub(super) fn new(blocks: usize) -> Self {
        let state = BlockState::Present;
        let block = BlockEntry { state, registered: false, storing: false, used: None };
        Self { blocks: vec![block; blocks], counts: Counts::default() }
    }

    /// Where block `index` is.
    pub(super) fn state(&self, index: usize) -> &BlockState {
        &self.blocks[index].state
    }

    /// Whether faults on block `index` are reported to the pager.
    pub(super) fn is_registered(&self, index: usize) -> bool {
        self.blocks[index].registered
    }

    /// How many are where.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// The numbers of the blocks for which `choose` holds, ascending.
    pub(super) fn select(&self, choose: impl Fn(&BlockState) -> bool) -> Vec<usize> {
        let chosen = self.blocks.iter().enumerate().filter(|(_, block)| choose(&block.state));
        chosen.map(|(index, _)| index).collect()
    }

    /// Whether registering block `index` would make another run of registered blocks.
    pub(super) fn starts_a_run(&self, index: usize) -> bool {
        !self.neighbour(index.checked_sub(1)) && !self.neighbour(index.checked_add(1))
    }

    /// Notes that block `index` is registered, or is not any more.
    pub(super) fn set_registered(&mut self, index: usize, registered: bool) {
        if std::mem::replace(&mut self.blocks[index].registered, registered) == registered {
            return;
        }
        let before = self.neighbour(index.checked_sub(1));
        let after = self.neighbour(index.checked_add(1));
        let joined = usize::from(before) + usize::from(after);
        if registered {
            self.counts.registered += 1;
            self.counts.runs = self.counts.runs + 1 - joined;
        } else {
            self.counts.registered -= 1;
            self.counts.runs = self.counts.runs + joined - 1;
        }
    }

    /// Whether a thread stores pages of block `index` from staging.
    pub(super) fn is_storing(&self, index: usize) -> bool {
        self.blocks[index].storing
    }

    /// Notes that a thread stores pages of block `index` from staging, or is done.
    pub(super) fn set_storing(&mut self, index: usize, storing: bool) {
        self.blocks[index].storing = storing;
    }

    /// Present → Leaving. Whether it was present, and may leave.
    pub(super) fn begin_leaving(&mut self, index: usize) -> bool {
        let present = *self.state(index) == BlockState::Present && !self.is_storing(index);
        if present {
            self.set(index, BlockState::Leaving { wanted: false });
        }
        present
    }

    /// Leaving → Out, unless a thread wants it; with `anyway` even then. Whether it is out.
    pub(super) fn left(&mut self, index: usize, slot: usize, anyway: bool) -> bool {
        match self.state(index) {
            BlockState::Leaving { wanted: true } if !anyway => false,
            BlockState::Leaving { .. } => {
                self.set(index, BlockState::Out { slot });
                true
            }
            other => panic!("block {index} cannot have left: {other:?}"),
        }
    }

    /// Out → Packing, if it still is out in `slot`. Whether it was.
    pub(super) fn begin_packing(&mut self, index: usize, slot: usize) -> bool {
        let out = *self.state(index) == BlockState::Out { slot };
        if out {
            self.set(index, BlockState::Packing { slot, wanted: false });
        }
        out
    }

    /// Packing → Absent, unless a thread wants it; with `anyway` even then. Whether it is absent.
    pub(super) fn packed(&mut self, index: usize, source: SourceId, anyway: bool) -> bool {
        match self.state(index) {
            BlockState::Packing { wanted: true, .. } if !anyway => false,
            BlockState::Packing { .. } => {
                let used = self.blocks[index].used.take();
                self.set(index, BlockState::Absent(Absence::new(source).with_used(used)));
                true
            }
            other => panic!("block {index} cannot be packed: {other:?}"),
        }
    }

    /// Staging → the store, as the source of an absent block. Returns the pages that the store need not
    /// have; `None` if the block is not in staging.
    pub(super) fn stored(&mut self, index: usize, store: SourceId) -> Option<PageMask> {
        let BlockState::Absent(absence) = self.state(index) else { return None };
        if !absence.is_staged() {
            return None;
        }
        let absence = absence.clone().with_source(store);
        let gone = PageMask::FULL.difference(&absence.at_source());
        self.set(index, BlockState::Absent(absence));
        Some(gone)
    }

    /// Present → Absent: its contents have been with `source` from the beginning.
    pub(super) fn set_absent(&mut self, index: usize, source: SourceId) {
        assert_eq!(*self.state(index), BlockState::Present, "block {index} is in use");
        self.set(index, BlockState::Absent(Absence::new(source)));
    }

    /// Present → Absent: no page of it is anywhere.
    pub(super) fn set_empty(&mut self, index: usize, source: SourceId) {
        assert_eq!(*self.state(index), BlockState::Present, "block {index} is in use");
        self.set(index, BlockState::Absent(Absence::empty(source)));
    }

    /// Leaving or Packing → Present: its pages are back in place.
    pub(super) fn returned(&mut self, index: usize) {
        let state = self.state(index);
        let ours = matches!(state, BlockState::Leaving { .. } | BlockState::Packing { .. });
        assert!(ours, "block {index} cannot be returned: {state:?}");
        self.set(index, BlockState::Present);
    }

    /// Out or Absent → Filling; gives what it was.
    pub(super) fn begin_filling(&mut self, index: usize) -> Option<BlockState> {
        let ready = matches!(self.state(index), BlockState::Out { .. } | BlockState::Absent(_));
        ready.then(|| self.set(index, BlockState::Filling))
    }

    /// Filling → Present.
    pub(super) fn filled(&mut self, index: usize) {
        assert_eq!(*self.state(index), BlockState::Filling, "block {index} is not being filled");
        self.set(index, BlockState::Present);
    }

    /// Notes what the guest used of block `index` while it was absent.
    pub(super) fn set_used(&mut self, index: usize, used: Option<Box<PageMask>>) {
        self.blocks[index].used = used;
    }

    /// Filling → what it was before, or with other pages in place: it could not be filled now, or
    /// only pages of it were to be moved.
    pub(super) fn not_filled(&mut self, index: usize, before: BlockState) {
        assert_eq!(*self.state(index), BlockState::Filling, "block {index} is not being filled");
        self.set(index, before);
    }

    /// Filling → Lost: the source could not read it.
    pub(super) fn lost(&mut self, index: usize) {
        assert_eq!(*self.state(index), BlockState::Filling, "block {index} is not being filled");
        self.set(index, BlockState::Lost);
    }

    /// Marks the block as wanted for the thread that is moving it. Returns whether there is one.
    pub(super) fn want(&mut self, index: usize) -> bool {
        match &mut self.blocks[index].state {
            BlockState::Leaving { wanted } | BlockState::Packing { wanted, .. } => {
                *wanted = true;
                true
            }
            _ => false,
        }
    }

    /// Drops pages of an absent block: they read as zero from now on. Whether any page is left to
    /// bring back.
    pub(super) fn drop_pages(&mut self, index: usize, pages: &PageMask) -> bool {
        self.counts.remove(&self.blocks[index].state);
        let left = match &mut self.blocks[index].state {
            BlockState::Absent(absence) => {
                absence.drop_pages(pages);
                !absence.is_empty()
            }
            other => panic!("block {index} has no source: {other:?}"),
        };
        self.counts.add(&self.blocks[index].state);
        left
    }

    /// Absent → Present: no page of it is left to bring back.
    pub(super) fn emptied(&mut self, index: usize) {
        let state = self.state(index);
        assert!(matches!(state, BlockState::Absent(_)), "block {index} has no source: {state:?}");
        self.set(index, BlockState::Present);
    }

    /// Recounts from the ground up; returns the first mismatch. For tests.
    pub(super) fn validate(&self) -> Result<(), String> {
        let mut counts = Counts::default();
        let mut before = false;
        for (index, block) in self.blocks.iter().enumerate() {
            counts.add(&block.state);
            counts.registered += usize::from(block.registered);
            counts.runs += usize::from(block.registered && !before);
            before = block.registered;
            let elsewhere =
                !matches!(block.state, BlockState::Present | BlockState::Leaving { .. });
            if elsewhere && !block.registered {
                return Err(format!("block {index} is {:?} but not registered", block.state));
            }
        }
        let told = self.counts;
        if counts == told { Ok(()) } else { Err(format!("{told:?} should be {counts:?}")) }
    }

    fn neighbour(&self, index: Option<usize>) -> bool {
        index.and_then(|index| self.blocks.get(index)).is_some_and(|block| block.registered)
    }

    fn set(&mut self, index: usize, state: BlockState) -> BlockState {
        let before = std::mem::replace(&mut self.blocks[index].state, state);
        self.counts.remove(&before);
        self.counts.add(&self.blocks[index].state);
        before
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOURCE: SourceId = SourceId(0);

    #[test]
    fn a_wanted_block_does_not_stay_away() {
        let mut record = Record::new(1);
        assert!(record.begin_leaving(0) && !record.begin_leaving(0));
        assert!(record.want(0));
        assert!(!record.left(0, 3, false));
        record.returned(0);
        assert!(record.begin_leaving(0) && record.left(0, 3, false));
        assert!(!record.begin_packing(0, 2) && record.begin_packing(0, 3));
        assert!(record.want(0));
        assert!(!record.packed(0, SOURCE, false));
        record.returned(0);
        assert_eq!(*record.state(0), BlockState::Present);
    }

    #[test]
    fn a_wanted_block_stays_away_if_it_has_to() {
        let mut record = Record::new(1);
        assert!(record.begin_leaving(0) && record.want(0) && record.left(0, 3, true));
        assert!(record.begin_packing(0, 3) && record.want(0) && record.packed(0, SOURCE, true));
        assert!(matches!(record.state(0), BlockState::Absent(_)));
    }

    #[test]
    fn a_block_of_dropped_pages_is_empty() {
        let mut record = Record::new(1);
        record.set_absent(0, SOURCE);
        let mut lower = PageMask::EMPTY;
        lower.set_range(0..256);
        assert!(record.drop_pages(0, &lower));
        assert!(!record.drop_pages(0, &PageMask::FULL.difference(&lower)));
        assert_eq!((record.counts().absent, record.counts().pages_gone), (1, 512));
        record.emptied(0);
        assert_eq!(*record.state(0), BlockState::Present);
        record.set_empty(0, SOURCE);
        assert_eq!((record.counts().absent, record.counts().pages_gone), (1, 512));
        // Discarded again, as by a guest that reports its free memory.
        assert!(!record.drop_pages(0, &lower));
        assert!(record.begin_filling(0).is_some());
        record.filled(0);
        assert_eq!(record.counts(), Counts::default());
    }

    #[test]
    #[should_panic(expected = "cannot be returned")]
    fn a_change_that_is_not_drawn_is_refused() {
        Record::new(1).returned(0);
    }

    proptest! {
        /// For any registrations in any order, the counters are those of a recount.
        #[test]
        fn runs_are_counted(changes in prop::collection::vec((0usize..12, any::<bool>()), 0..80)) {
            let mut record = Record::new(12);
            for (index, registered) in changes {
                let alone = record.starts_a_run(index);
                let (runs, before) = (record.counts().runs, record.is_registered(index));
                record.set_registered(index, registered);
                prop_assert_eq!(record.validate(), Ok(()));
                if registered && !before {
                    prop_assert_eq!(record.counts().runs > runs, alone);
                }
            }
        }
    }
}
