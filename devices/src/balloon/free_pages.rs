// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queues of free pages that stay out of the balloon: reports, as they become free, and hints,
//! on the host's command.

use mm::range_set::RangeSet;
use mm::units::{Bytes, GuestRange};

use super::counters::{Counters, GivenBack};
use super::device::Balloon;
use super::protocol::feature;
use crate::virtio::{ChainError, GuestMemory, Segments};

impl Balloon {
    /// Free pages, reported as they became free; the driver holds them until the buffer is used.
    pub(super) fn report(&mut self, buffer: Result<Segments, ChainError>, poisoned: bool) {
        let Some(buffer) = self.usable(buffer) else { return };
        self.give_back_free(&buffer, poisoned, |counters| &mut counters.free_page_report);
        if !poisoned {
            self.pool.note_reported(page_ranges(&buffer).iter());
        }
    }

    /// A command id, or free pages; returns whether the driver must be told of a new command.
    pub(super) fn hint(
        &mut self,
        mem: &GuestMemory,
        buffer: Result<Segments, ChainError>,
        poisoned: bool,
    ) -> bool {
        let Some(buffer) = self.usable(buffer) else { return false };
        let mut command = [0; 4];
        let told = match buffer.read(mem, 0, &mut command) {
            0 => false,
            4 => self.hinting.guest_command(u32::from_le_bytes(command)),
            _ => {
                self.bad_buffer(&"command id cut off");
                return false;
            }
        };
        if buffer.writable.is_empty() {
            return told;
        }
        if self.hinting.running() {
            self.give_back_free(&buffer, poisoned, |counters| &mut counters.free_page_hint);
        } else {
            self.pool.counters.stale_hints += 1;
        }
        told
    }

    fn give_back_free(
        &mut self,
        buffer: &Segments,
        poisoned: bool,
        counter: fn(&mut Counters) -> &mut GivenBack,
    ) {
        if poisoned {
            self.pool.counters.poisoned_buffers += 1;
        } else {
            self.pool.discard_free(page_ranges(buffer).iter(), counter);
        }
    }

    /// Whether free pages hold a pattern that the guest will look for (virtio 1.3, 5.5.6.7): a
    /// discarded page reads as zero.
    pub(super) fn poisoned(&self, features: u64) -> bool {
        features & feature::PAGE_POISON != 0 && self.config.poison_val.get() != 0
    }
}

/// The whole pages that the writable part of `buffer` names, each once.
fn page_ranges(buffer: &Segments) -> RangeSet {
    let ranges = buffer.writable.iter();
    ranges
        .filter_map(|segment| GuestRange::inside_bytes(segment.addr, Bytes(segment.len.into())))
        .collect()
}
