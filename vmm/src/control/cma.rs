// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the CMA region.

use devices::balloon::Statistics;
use mm::blocks::map::{BlockFlags, BlockMap, Totals};
use mm::units::{Bytes, Pages, SaturatingInto};
use tracing::warn;

use super::Controller;
use crate::api::Refusal;
use crate::api::channel::ReplySender;
use crate::api::cma::{CmaAction, CmaReply, CmaStatus, CmaUse};

impl Controller {
    /// The CMA region: the host's figures, and the guest's. Replies from the thread that walks the
    /// page table.
    pub(super) fn cma_action(&mut self, action: CmaAction, reply: ReplySender) {
        let CmaAction::Get = action;
        let vm = match self.vm() {
            Ok(vm) => vm,
            Err(refusal) => return reply.send(Err(refusal)),
        };
        let layout = vm.ram().layout();
        let Some(region) = layout.cma() else {
            return reply.send(Err(Refusal::NoDevice("CMA")));
        };
        let told = vm.balloon().map(|balloon| *balloon.lock().statistics());
        let guest = told.and_then(|told| {
            guest_use(&told, layout.ram_pages().bytes()).unwrap_or_else(|error| {
                warn!(%error, "ignoring the guest's CMA figures");
                None
            })
        });
        self.with_map(reply, move |map| {
            Ok(CmaReply(CmaStatus {
                start: region.address().0,
                size_bytes: region.bytes().0,
                totals: (&totals(map)).into(),
                guest,
            })
            .into())
        });
    }
}

/// Sums over the blocks of the CMA region.
fn totals(map: &BlockMap) -> Totals {
    let mut totals = Totals::default();
    for (_, block) in map.iter().filter(|(_, b)| b.flags.contains(BlockFlags::CMA)) {
        let bytes = |pages: u16| Pages(u64::from(pages)).bytes();
        let huge = if block.flags.contains(BlockFlags::HUGE) { block.present } else { 0 };
        totals.resident = totals.resident.saturating_add(bytes(block.present));
        totals.huge = totals.huge.saturating_add(bytes(huge));
        totals.ballooned = totals.ballooned.saturating_add(bytes(block.ballooned));
        totals.gpu = totals.gpu.saturating_add(bytes(block.gpu));
        totals.wasted = totals.wasted.saturating_add(bytes(block.wasted));
    }
    totals
}

/// The guest's figures of its contiguous regions contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid CMA figures from the guest: {total} B total, {free} B free, {allocated} B allocated"
)]
struct ImpossibleCma {
    total: u64,
    free: u64,
    allocated: u64,
}

/// The guest's figures, for a guest with `ram` in total; `None` if it sends none.
fn guest_use(told: &Statistics, ram: Bytes) -> Result<Option<CmaUse>, ImpossibleCma> {
    let figures = (told.cma_total, told.cma_free, told.cma_allocated, told.updated);
    let (Some(total), Some(free), Some(allocated), Some(updated)) = figures else {
        return Ok(None);
    };
    if total > ram.0 || free > total || allocated > total {
        return Err(ImpossibleCma { total, free, allocated });
    }
    Ok(Some(CmaUse {
        total_bytes: total,
        free_bytes: free,
        // The guest counts both at different moments: their sum may exceed the total.
        lent_bytes: total.saturating_sub(free.saturating_add(allocated)),
        contiguous_bytes: allocated,
        age_ms: updated.elapsed().as_millis().saturating_u64(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(total: u64, free: u64, allocated: u64) -> Result<Option<CmaUse>, ImpossibleCma> {
        let statistics = Statistics {
            cma_total: Some(total),
            cma_free: Some(free),
            cma_allocated: Some(allocated),
            updated: Some(std::time::Instant::now()),
            ..Statistics::default()
        };
        guest_use(&statistics, Bytes(1000))
    }

    #[test]
    fn memory_neither_free_nor_allocated_is_lent() {
        let parts = |total, free, allocated| {
            told(total, free, allocated).unwrap().map(|c| (c.lent_bytes, c.contiguous_bytes))
        };
        assert_eq!(parts(100, 30, 20), Some((50, 20)));
        assert_eq!(parts(100, 60, 50), Some((0, 50)), "counted at different moments");
        assert_eq!(parts(0, 0, 0), Some((0, 0)));
    }

    #[test]
    fn rejects_impossible_figures_of_the_guest() {
        assert_eq!(guest_use(&Statistics::default(), Bytes(1000)), Ok(None));
        for (total, free, allocated) in
            [(1001, 0, 0), (100, 101, 0), (100, 0, 101), (u64::MAX, u64::MAX, u64::MAX)]
        {
            let impossible = ImpossibleCma { total, free, allocated };
            assert_eq!(told(total, free, allocated), Err(impossible));
        }
    }
}
