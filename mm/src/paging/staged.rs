// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blocks that stay in staging while the guest gets single pages of them: a source of pages.
//!
//! A block's slot is its trial's: it is free again when the trial ends, even if the whole block came
//! back before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::Page;
use crate::units::{PAGES_PER_BLOCK, usize_from};

use super::source::{Content, PageSource, SourceError};
use super::staging::Outlet;

/// The blocks, as a source of their pages.
#[derive(Debug)]
pub(super) struct StagedBlocks {
    outlet: Arc<Outlet>,
    /// The slot of each.
    slots: Mutex<BTreeMap<usize, usize>>,
}

impl StagedBlocks {
    /// In slots of `outlet`.
    pub(super) fn new(outlet: Arc<Outlet>) -> Self {
        Self { outlet, slots: Mutex::default() }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that block `index` lies in `slot`. `false` if an earlier trial has it still.
    pub(super) fn hold(&self, index: usize, slot: usize) -> bool {
        // No two blocks lie in one slot.
        *self.slots().entry(index).or_insert(slot) == slot
    }

    /// Where block `index` is.
    pub(super) fn slot(&self, index: usize) -> Option<usize> {
        self.slots().get(&index).copied()
    }

    /// Frees the slot of block `index`, which is not read any more.
    pub(super) fn release(&self, index: usize) {
        let slot = self.slots().remove(&index);
        if let Some(slot) = slot {
            self.outlet.give_back(slot);
        }
    }
}

impl PageSource for StagedBlocks {
    fn read(&self, page: u64, into: &mut Page) -> Result<Content, SourceError> {
        let (index, at) = (page / PAGES_PER_BLOCK, page % PAGES_PER_BLOCK);
        let Some(slot) = self.slot(usize_from(index)) else {
            let source = "its slot is gone".into();
            return Err(SourceError { page, from: "staging", source });
        };
        // SAFETY: a block is read here only while it is being filled from staging, and its slot is
        // released only after that. It has all pages: it left as a huge page, and nothing moves away.
        into.copy_from_slice(unsafe { self.outlet.page(slot, usize_from(at)) });
        Ok(Content::Written)
    }
}
