// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queues for free pages that stay out of the balloon: reports when they become free, and hints
//! on the host's command.

use mm::range_set::RangeSet;
use mm::units::{Bytes, GuestRange};

use super::balloon_core::BalloonCore;
use super::counters::FreePagesOrigin;
use super::hinting::Hinting;
use super::pool::Pool;
use super::work::Work;
use crate::virtio::{Deadline, GuestMemoryMmap, Segments};

/// Handles a report: free pages, which the driver holds until the buffer is returned.
pub(super) fn report(
    core: &mut BalloonCore,
    buffer: &Segments,
    poisoned: bool,
    deadline: &mut Deadline,
) -> Work {
    if poisoned {
        core.journal.counters.poisoned_buffers += 1;
        return Work::default();
    }
    let ranges = page_ranges(&core.pool, buffer, deadline);
    core.pool.note_reported(&ranges);
    Work::free(ranges, FreePagesOrigin::Report)
}

/// Handles a command ID or hinted pages; returns the remaining work, and whether the driver must be
/// notified of a new command.
pub(super) fn hint(
    hinting: &mut Hinting,
    core: &mut BalloonCore,
    mem: &GuestMemoryMmap,
    buffer: &Segments,
    poisoned: bool,
    deadline: &mut Deadline,
) -> (Work, bool) {
    let mut command = [0; 4];
    let told = match buffer.read(mem, 0, &mut command) {
        0 => false,
        4 => hinting.guest_command(u32::from_le_bytes(command)),
        _ => {
            core.journal.bad_buffer("truncated command ID");
            return (Work::default(), false);
        }
    };
    if buffer.writable.is_empty() {
        return (Work::default(), told);
    }
    let counters = &mut core.journal.counters;
    if !hinting.running() {
        counters.stale_hints += 1;
        return (Work::default(), told);
    }
    if poisoned {
        counters.poisoned_buffers += 1;
        return (Work::default(), told);
    }
    (Work::free(page_ranges(&core.pool, buffer, deadline), FreePagesOrigin::Hint), told)
}

/// The whole pages of RAM that the writable part of `buffer` names, each once, in ascending order.
fn page_ranges(pool: &Pool, buffer: &Segments, deadline: &mut Deadline) -> Vec<GuestRange> {
    deadline.charge(buffer.writable.len() as u64 * Deadline::ENTRY);
    let ranges = buffer
        .writable
        .iter()
        .filter_map(|segment| GuestRange::inside_bytes(segment.addr, Bytes(segment.len.into())));
    let ranges: RangeSet = ranges.collect();
    ranges.iter().flat_map(|range| pool.clip(range)).collect()
}
