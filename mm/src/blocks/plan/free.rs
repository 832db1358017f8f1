// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the guest's free memory lies on the host, and what it takes to make blocks of it.

use crate::blocks::map::{BlockMap, Totals};
use crate::units::{BLOCK_SIZE, Bytes, SaturatingInto};

/// Where the guest's reported free memory lies on the host.
pub(super) struct Free {
    /// All of it.
    pub(super) all: Bytes,
    /// Absent on the host.
    pub(super) absent: Bytes,
    /// Resident on the host (wasted).
    pub(super) held: Bytes,
    /// Not free and not in the balloon.
    in_use: Bytes,
}

impl Free {
    /// `None` if the guest reports nothing, or an impossible amount.
    pub(super) fn of(map: &BlockMap, totals: &Totals) -> Option<Self> {
        let all = map.guest_free()?;
        let in_use = totals.ram.0.checked_sub(totals.ballooned.0)?.checked_sub(all.0)?;
        // Absent and not in the balloon: never accessed, or free.
        let given_back = totals.ballooned.saturating_sub(totals.wasted);
        let absent = totals.ram.saturating_sub(totals.resident).saturating_sub(given_back);
        Some(Self { all, absent, held: all.saturating_sub(absent), in_use: Bytes(in_use) })
    }

    /// Bytes to move to free a block once `returned` of the balloon are free too, assuming that used
    /// pages are spread evenly.
    pub(super) fn moved_for_a_block(&self, returned: Bytes) -> u64 {
        let parts = u128::from(self.in_use.0);
        let all = parts + u128::from(self.all.0) + u128::from(returned.0);
        let moved = u128::from(BLOCK_SIZE) * parts / all.max(1);
        moved.saturating_u64().max(1)
    }
}
