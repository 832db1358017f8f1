// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Goals, limits, estimated costs and effort of a compaction pass, as values, so that planning is a
//! pure function of its arguments.

use std::time::Duration;

use super::stage::Stage;
use crate::units::{Bytes, GuestRange, PAGES_PER_BLOCK, Pages};

/// What a pass should achieve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goals {
    /// Where it may work; everywhere if `None`.
    pub scope: Option<GuestRange>,
    /// Discard wasted pages.
    pub discard: bool,
    /// Split a huge page only for at least this many wasted pages.
    pub split_from: Pages,
    /// Make blocks with at least this many used pages huge; `None` for no block.
    ///
    /// Absent pages of such a block become memory: up to `512 - collapse_from` pages each.
    pub collapse_from: Option<Pages>,
    /// Ask the guest to evacuate blocks with at most this many used pages; `None` for no block.
    /// Only for guests that support evacuation.
    pub evacuate_up_to: Option<Pages>,
    /// Borrow free memory from the guest in whole blocks, which it makes by migrating pages, and
    /// return it: in exchange for single pages of the balloon, and empty. Only for guests that
    /// support evacuation and report their free memory, and only with an unlimited scope.
    pub gather: bool,
    /// Ask the guest to evacuate blocks that look full to the host, as many as its free memory
    /// amounts to: their pages fill the gaps of others. Only for guests that report their free
    /// memory.
    pub squeeze: bool,
    /// Make every block huge and present, with any contents, ready for contiguous allocation. Only
    /// blocks without holes.
    pub back: bool,
    /// The same for blocks that belong entirely to GPU resources, anywhere in memory.
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

    /// Everything that costs the guest only time, with or without its cooperation.
    ///
    /// A block is dense from nine tenths. A cooperating guest is asked to evacuate blocks with
    /// less; blocks that it could not evacuate are made huge from three quarters.
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

    /// Huge pages for blocks that belong entirely to GPU resources.
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

    /// All of `scope` in huge pages, before it is used.
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
    /// No limit.
    pub const UNLIMITED: Self = Self { bytes: Bytes(u64::MAX), time: Duration::MAX };
}

/// Estimated cost of each kind of action, measured on an ordinary x86-64 host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Discarding a whole block.
    pub discard_block: Duration,
    /// Splitting a huge page.
    pub split: Duration,
    /// Discarding one run of pages.
    pub discard_run: Duration,
    /// Making a block huge: one huge page allocated, its pages copied.
    pub collapse: Duration,
    /// Migrating one page in the guest, with its share of the round trip.
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

/// How much effort a pass spends on each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassPolicy {
    /// Consecutive failed huge-page allocations after which a pass stops trying.
    pub collapse_refusals: u32,
    /// How long to wait for the guest to report its free memory.
    pub free_patience: Duration,
    /// Consecutive unanswered requests after which a pass stops asking the guest.
    pub unanswered: u32,
    /// How many blocks the guest is asked to evacuate at once.
    pub evacuate_at_once: usize,
    /// Maximum number of requests to lend free memory; each exchanges as many single pages of the
    /// balloon for blocks.
    pub gathers: u32,
    /// Maximum number of rounds that evacuate full blocks into remaining gaps.
    pub squeezes: u32,
    /// How long a map stays good while the pass changes nothing.
    pub map_age: Duration,
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
            map_age: Duration::from_secs(1),
        }
    }
}

impl PassPolicy {
    /// Maximum number of planning rounds for `stage`, while they help.
    pub fn rounds(&self, stage: Stage) -> u32 {
        match stage {
            Stage::Gather => self.gathers,
            Stage::Squeeze => self.squeezes,
            Stage::Evacuate { .. } | Stage::Host => 1,
        }
    }
}

/// What the guest's kernel needs, and the smallest remainder worth asking for.
pub(super) mod guest_memory {
    use crate::units::Bytes;

    /// A guest's kernel keeps about this much free; asked for more, it would drop page cache.
    pub(crate) fn reserve(ram: Bytes) -> Bytes {
        Bytes(ram.0 / 12).min(Bytes(128 << 20))
    }

    /// At most this part of memory is taken out of the balloon at once, to be exchanged for blocks.
    pub(crate) const EXCHANGE_PART: u64 = 3;

    /// Gathering is worth it for this share of what is resident.
    pub(crate) const GATHER_FROM: u64 = 64;
}
