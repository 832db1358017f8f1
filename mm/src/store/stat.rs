// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Statistics of a store.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::slot::Kept;

/// Statistics, in the order of zram's `mm_stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmStat {
    /// Bytes stored, before compression.
    pub orig_data_size: u64,
    /// Bytes after compression; same-filled pages count as none.
    pub compr_data_size: u64,
    /// Bytes of frames in use.
    pub mem_used_total: u64,
    /// Most bytes of frames allowed; 0 for no limit.
    pub mem_limit: u64,
    /// Most bytes of frames at any time.
    pub mem_used_max: u64,
    /// Pages kept as one word.
    pub same_pages: u64,
    /// Frames given back by compaction.
    pub pages_compacted: u64,
    /// Pages kept uncompressed.
    pub huge_pages: u64,
    /// Pages stored uncompressed since the beginning.
    pub huge_pages_since: u64,
}

impl fmt::Display for MmStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            self.orig_data_size,
            self.compr_data_size,
            self.mem_used_total,
            self.mem_limit,
            self.mem_used_max,
            self.same_pages,
            self.pages_compacted,
            self.huge_pages,
            self.huge_pages_since,
        ];
        fields.iter().try_for_each(|field| write!(f, "{field:>12} "))
    }
}

/// Counts of what is stored.
#[derive(Default)]
pub(super) struct StoreCounters {
    pages: AtomicU64,
    packed_bytes: AtomicU64,
    same: AtomicU64,
    raw: AtomicU64,
    raw_since: AtomicU64,
}

impl StoreCounters {
    /// A page was stored.
    pub(super) fn add(&self, kept: Kept) {
        match kept {
            Kept::Nothing => return,
            Kept::Same(_) => add(&self.same, 1),
            Kept::Raw(_) => {
                add(&self.raw, 1);
                add(&self.raw_since, 1);
            }
            Kept::Packed(_, len) | Kept::Bundled(len) => add(&self.packed_bytes, len as u64),
        }
        add(&self.pages, 1);
    }

    /// A page was removed.
    pub(super) fn sub(&self, kept: Kept) {
        match kept {
            Kept::Nothing => return,
            Kept::Same(_) => sub(&self.same, 1),
            Kept::Raw(_) => sub(&self.raw, 1),
            Kept::Packed(_, len) | Kept::Bundled(len) => sub(&self.packed_bytes, len as u64),
        }
        sub(&self.pages, 1);
    }

    /// The fields of the statistics that are counted here; `page` is a page's size in bytes.
    pub(super) fn fill(&self, stat: &mut MmStat, page: u64) {
        let raw = self.raw.load(Ordering::Relaxed);
        stat.orig_data_size = self.pages.load(Ordering::Relaxed) * page;
        stat.compr_data_size = self.packed_bytes.load(Ordering::Relaxed) + raw * page;
        stat.same_pages = self.same.load(Ordering::Relaxed);
        stat.huge_pages = raw;
        stat.huge_pages_since = self.raw_since.load(Ordering::Relaxed);
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn sub(counter: &AtomicU64, amount: u64) {
    counter.fetch_sub(amount, Ordering::Relaxed);
}
