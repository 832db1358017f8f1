// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a pass needs of the devices: who holds which pages, and the actions that the guest has a
//! part in.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::map::Holdings;
use super::mask::PageMask;
use crate::backing::Discarded;
use crate::guest_ram::GuestRamError;
use crate::units::{BlockId, Pages};

/// The guest and its devices, as a pass sees them.
pub trait GuestSide {
    /// Who holds which pages now.
    fn holdings(&self) -> Holdings;

    /// Gives back those of `pages` of `block` that are in the balloon at this very moment; the
    /// balloon stands still meanwhile, so that no page which the guest took back is lost.
    ///
    /// # Errors
    ///
    /// What the host refuses.
    fn discard_ballooned(
        &self,
        block: BlockId,
        pages: &PageMask,
    ) -> Result<Discarded, GuestRamError>;

    /// Whether pages of `block` were given up, so that nothing may fill it again.
    fn has_holes(&self, block: BlockId) -> bool;

    /// After `block` was filled: if pages of it have been given up meanwhile, takes them away again
    /// and keeps huge pages from it. Whether there were any.
    ///
    /// # Errors
    ///
    /// What the host refuses.
    fn keep_holes(&self, block: BlockId) -> Result<bool, GuestRamError>;

    /// Asks the guest to evacuate `blocks`, with `sync` to wait for pages that are busy for the
    /// moment, and waits for its reply, for `patience` at most or until `cancel` is set: `true` for
    /// each that it gave up, in order. `None` if it did not reply.
    fn evacuate(
        &self,
        blocks: &[BlockId],
        sync: bool,
        patience: Duration,
        cancel: &AtomicBool,
    ) -> Option<Vec<bool>>;

    /// Asks the guest how much memory it has free, for the next [`holdings`](Self::holdings).
    fn ask_free(&self, patience: Duration);

    /// Pages that the guest has lent on top of the target.
    fn lent(&self) -> Pages;

    /// Asks the guest to lend `blocks` blocks more, and waits for them as long as they keep coming,
    /// for `patience` at most or until `cancel` is set. How many came.
    fn gather(&self, blocks: u32, patience: Duration, cancel: &AtomicBool) -> u32;

    /// Returns what the guest has lent beyond `keep`, and waits until it has it back, for a while.
    fn settle(&self, keep: Pages);
}
