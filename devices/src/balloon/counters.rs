// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counters of the balloon since the machine started. All are monotonic.

use mm::backing::Discarded;

/// Which queue named free pages that stay out of the balloon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum FreePagesOrigin {
    /// Free page reporting.
    #[default]
    Report,
    /// Free page hinting.
    Hint,
}

/// Counters of one balloon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct BalloonCounters {
    /// Activations that failed.
    pub activate_fails: u64,
    /// Buffers of the inflate queue.
    pub inflate_count: u64,
    /// Buffers of the deflate queue.
    pub deflate_count: u64,
    /// Pages that went into the balloon, blocks included.
    pub inflated_pages: u64,
    /// Pages taken out of it, blocks included.
    pub deflated_pages: u64,
    /// Pages taken out before they were discarded on the host.
    pub spared_pages: u64,
    /// Entries refused: outside RAM, named twice, in the balloon already or not in it.
    pub refused_pages: u64,
    /// Buffers left alone because their descriptors or their length made no sense.
    pub bad_buffers: u64,
    /// Requests on the block queue that were done.
    pub block_requests: u64,
    /// Requests on the block queue that were refused.
    pub block_refusals: u64,
    /// Blocks that went in as one.
    pub inflated_blocks: u64,
    /// Whole blocks taken out.
    pub deflated_blocks: u64,
    /// Balloon pages that the guest migrated: one page in, then one page out.
    pub migrated_pages: u64,
    /// Balloon blocks that the guest migrated.
    pub migrated_blocks: u64,
    /// Memory returned to the host by inflation.
    pub inflation: GivenBack,
    /// Memory returned again by host-side compaction.
    pub compaction: GivenBack,
    /// Memory returned to the host by free page reporting.
    pub free_page_report: GivenBack,
    /// Memory returned to the host by free page hinting.
    pub free_page_hint: GivenBack,
    /// Hints that were too late or for another command.
    pub stale_hints: u64,
    /// Reports and hints ignored, because the guest checks the contents of its free pages.
    pub poisoned_buffers: u64,
    /// Statistics buffers read.
    pub stats_updates_count: u64,
    /// Statistics polled while the guest had not answered the poll before.
    pub stats_update_fails: u64,
    /// Statistics entries of unknown meaning.
    pub stats_unknown: u64,
    /// Evacuation requests that were answered.
    pub evacuations: u64,
    /// Evacuation requests that ended without an answer: out of time, or by a reset.
    pub evacuation_fails: u64,
    /// Evacuation replies that named the wrong request or contradicted the device's record.
    pub evacuation_invalid_replies: u64,
    /// Blocks evacuated on request.
    pub evacuated_blocks: u64,
    /// Blocks with holes where huge pages stay allowed because the budget of mappings is used up:
    /// the host may fill their holes again.
    pub unguarded_blocks: u64,
    /// Number of deflate requests that had to wait because the host had no memory for them.
    pub deflate_waits: u64,
}

/// Memory that went back to the host, for one reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct GivenBack {
    /// Discards, each of one or more runs.
    pub count: u64,
    /// Bytes that the guest gave up.
    pub asked: u64,
    /// Bytes verified: they were resident, and the host has them free again.
    pub freed: u64,
    /// Bytes that the host still holds as parts of huge pages it could not split.
    pub held: u64,
    /// Huge pages split for single pages of them.
    pub splits: u64,
    /// Whole blocks returned at once.
    pub whole_blocks: u64,
    /// Discards that the host refused.
    pub fails: u64,
}

impl BalloonCounters {
    pub(super) fn free_pages(&mut self, origin: FreePagesOrigin) -> &mut GivenBack {
        match origin {
            FreePagesOrigin::Report => &mut self.free_page_report,
            FreePagesOrigin::Hint => &mut self.free_page_hint,
        }
    }
}

impl GivenBack {
    pub(super) fn add(&mut self, done: Discarded, whole_blocks: u64) {
        self.count += 1;
        self.asked = self.asked.saturating_add(done.asked.0);
        self.freed = self.freed.saturating_add(done.freed.0);
        self.held = self.held.saturating_add(done.held.0);
        self.splits = self.splits.saturating_add(done.splits);
        self.whole_blocks = self.whole_blocks.saturating_add(whole_blocks);
    }
}
