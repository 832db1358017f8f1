// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a pass needs from the devices: which pages they hold, and the actions that involve the
//! guest.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::map::Holdings;
use super::mask::PageMask;
use crate::backing::Discarded;
use crate::guest_ram::GuestRamError;
use crate::units::{BlockId, Pages};

/// The guest and its devices, as a pass sees them.
pub trait GuestSide {
    /// The pages that each device holds now.
    fn holdings(&self) -> Holdings;

    /// Discards those of `pages` in `block` that are in the balloon now, with the balloon locked,
    /// so that no page that the guest took back is lost.
    ///
    /// # Errors
    ///
    /// What the host refuses.
    fn discard_ballooned(
        &self,
        block: BlockId,
        pages: &PageMask,
    ) -> Result<Discarded, GuestRamError>;

    /// Whether the guest gave up pages of `block`, which must not be filled again.
    fn has_holes(&self, block: BlockId) -> bool;

    /// Called after `block` was filled: if the guest has given up pages of it since, discards them
    /// and forbids huge pages in the block. Returns whether there were any.
    ///
    /// # Errors
    ///
    /// What the host refuses.
    fn keep_holes(&self, block: BlockId) -> Result<bool, GuestRamError>;

    /// Asks the guest to evacuate `blocks`, with `sync` to wait for busy pages, and waits for its
    /// reply, for at most `patience` or until `cancel` is set. Returns `true` for each block that
    /// it gave up, in order; `None` without a reply.
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

    /// Lets the guest take back single pages of the balloon, about `pages` (all if that leaves few),
    /// and waits for that, for at most `patience` or until `cancel` is set. The balloon is smaller than its target by as much
    /// until the next [`gather`](Self::gather) or [`settle`](Self::settle). Returns how many pages the
    /// guest took.
    fn take_back(&self, pages: Pages, patience: Duration, cancel: &AtomicBool) -> Pages;

    /// Asks the guest to fill the balloon up to its target again and to lend `blocks` more blocks, calls
    /// `meanwhile`, and waits while blocks keep arriving, for at most `patience` or until `cancel` is
    /// set. Returns how many arrived.
    fn gather(
        &self,
        blocks: u32,
        patience: Duration,
        cancel: &AtomicBool,
        meanwhile: &mut dyn FnMut(),
    ) -> u32;

    /// Returns what the guest has lent beyond `keep`, and waits for a limited time until the guest
    /// has taken it back.
    fn settle(&self, keep: Pages);
}
