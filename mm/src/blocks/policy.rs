// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a compaction pass is for, what it may spend, what things are believed to cost and how far it
//! goes for each: values, so that planning is a function of its arguments and nothing else.

use std::time::Duration;

use super::stage::Stage;
use crate::units::{Bytes, GuestRange, PAGES_PER_BLOCK, Pages};

/// What a pass is to bring about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goals {
    /// Where it may work; everywhere if `None`.
    pub scope: Option<GuestRange>,
    /// Give back what is held for nothing.
    pub discard: bool,
    /// Split a huge page only for at least so many pages that are held for nothing.
    pub split_from: Pages,
    /// Make blocks of at least so many used pages huge; `None` for no block.
    ///
    /// Absent pages of such a block become memory: up to `512 - collapse_from` pages each.
    pub collapse_from: Option<Pages>,
    /// Ask the guest to empty blocks of at most so many used pages; `None` for no block. Only for
    /// guests that offer evacuation.
    pub evacuate_up_to: Option<Pages>,
    /// Borrow free memory of the guest in whole blocks, which it makes by moving what is in their
    /// way, and return it: in place of single pages of the balloon, and empty. Only for guests that
    /// offer evacuation and say how much they have free, and not where the scope is limited.
    pub gather: bool,
    /// Ask the guest to empty blocks that are full to the eye of the host, as many as the memory
    /// makes that the guest has free there: their pages fill the gaps of others. For guests that say
    /// how much they have free.
    pub squeeze: bool,
    /// Make every block huge and present, with any contents: for contiguous use that is to come.
    /// Only blocks without holes.
    pub back: bool,
    /// The same for blocks that GPU resources have the whole of, wherever they are.
    pub back_gpu: bool,
}

impl Goals {
    /// All stages that these goals call for, in order.
    pub fn stages(&self) -> impl Iterator<Item = Stage> + use<> {
        let all = [
            (Stage::Gather, self.gather),
            (Stage::Evacuate { sync: false }, self.evacuate_up_to.is_some()),
            (Stage::Evacuate { sync: true }, self.evacuate_up_to.is_some()),
            (Stage::Squeeze, self.squeeze),
            (Stage::Host, true),
        ];
        all.into_iter().filter(|(_, wanted)| *wanted).map(|(stage, _)| stage)
    }

    /// Everything that costs the guest nothing but time, with a guest that helps or without.
    ///
    /// Nine tenths make a block dense. A guest that helps is asked to empty blocks with less; what
    /// it could not empty then is made huge from three quarters on.
    pub fn all(guest_evacuates: bool) -> Self {
        let dense = Pages(PAGES_PER_BLOCK * 9 / 10);
        let stuck = Pages(PAGES_PER_BLOCK * 3 / 4);
        Self {
            scope: None,
            discard: true,
            split_from: Pages(PAGES_PER_BLOCK / 8),
            collapse_from: Some(if guest_evacuates { stuck } else { dense }),
            evacuate_up_to: guest_evacuates.then_some(Pages(dense.0 - 1)),
            gather: guest_evacuates,
            squeeze: guest_evacuates,
            back: false,
            back_gpu: true,
        }
    }

    /// What a GPU uses as one, in huge pages: it asks for no more than that, and waits for it.
    pub fn backing_gpu() -> Self {
        Self {
            scope: None,
            discard: false,
            split_from: Pages(0),
            collapse_from: None,
            evacuate_up_to: None,
            gather: false,
            squeeze: false,
            back: false,
            back_gpu: true,
        }
    }

    /// All of `scope` in huge pages before it is used.
    pub fn backing(scope: GuestRange) -> Self {
        Self { scope: Some(scope), back: true, ..Self::all(false) }
    }
}

/// What a pass may spend. A plan stays below both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassLimits {
    /// Bytes that may be copied, by the host or by the guest.
    pub bytes: Bytes,
    /// Time that may be spent.
    pub time: Duration,
}

impl PassLimits {
    /// As much as it takes.
    pub const UNLIMITED: Self = Self { bytes: Bytes(u64::MAX), time: Duration::MAX };
}

/// What one kind of action is believed to cost, measured on an ordinary x86-64 host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Giving a block back whole.
    pub discard_block: Duration,
    /// Splitting a huge page.
    pub split: Duration,
    /// Giving back one run of pages.
    pub discard_run: Duration,
    /// Making a block huge: one huge page allocated, its pages copied.
    pub collapse: Duration,
    /// The guest's moving one page, and its share of the round trip.
    pub evacuate_page: Duration,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            discard_block: Duration::from_micros(5),
            split: Duration::from_micros(60),
            discard_run: Duration::from_micros(1),
            collapse: Duration::from_micros(700),
            evacuate_page: Duration::from_micros(8),
        }
    }
}

/// How far a pass goes for each thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassPolicy {
    /// After so many huge pages in a row that the host did not have, a pass asks for no more.
    pub collapse_refusals: u32,
    /// How long the guest may take to say how much memory it has free.
    pub free_patience: Duration,
    /// After so many requests in a row without an answer, a pass asks the guest for no more.
    pub unanswered: u32,
    /// How many blocks the guest is asked to evacuate at once.
    pub evacuate_at_once: usize,
    /// How often the guest is asked to lend what it has free, at most: each time as many single
    /// pages of the balloon become blocks.
    pub gathers: u32,
    /// How often full blocks are evacuated into what gaps are left, at most.
    pub squeezes: u32,
}

impl Default for PassPolicy {
    fn default() -> Self {
        Self {
            collapse_refusals: 3,
            free_patience: Duration::from_secs(1),
            unanswered: 2,
            evacuate_at_once: 16,
            gathers: 4,
            squeezes: 4,
        }
    }
}

impl PassPolicy {
    /// How often `stage` is planned anew, at most, as long as that helps.
    pub fn rounds(&self, stage: Stage) -> u32 {
        match stage {
            Stage::Gather => self.gathers,
            Stage::Squeeze => self.squeezes,
            Stage::Evacuate { .. } | Stage::Host => 1,
        }
    }
}

/// What the guest's kernel needs, and from where on it is worth asking for the rest.
pub(super) mod guest_memory {
    use crate::units::Bytes;

    /// A guest's kernel keeps about this much free for itself; asked for more, the guest would drop
    /// what it has cached.
    pub(crate) fn reserve(ram: Bytes) -> Bytes {
        Bytes(ram.0 / 12).min(Bytes(128 << 20))
    }

    /// Gathering is worth it for this share of what is resident.
    pub(crate) const GATHER_FROM: u64 = 64;
}
