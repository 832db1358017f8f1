// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queues of single pages, into the balloon and out of it.

use mm::units::Pfn;

use super::balloon_core::BalloonCore;
use super::migrations::Single;
use super::pages::merge;
use super::protocol::decode_pfn;
use super::work::Work;
use crate::virtio::{Deadline, GuestMemoryMmap, Segments};

/// Most page numbers in one buffer. Linux sends 256, our driver 1024.
const MAX_PFNS: usize = 4096;
/// Bytes of one page number on the wire.
const PFN_BYTES: usize = 4;

/// Takes buffers of page numbers.
#[derive(Debug, Default)]
pub(super) struct Inflation {
    /// The page numbers of the buffer being handled.
    pfns: Vec<Pfn>,
}

impl Inflation {
    /// Puts pages into the balloon. Pages that need not wait are discarded before the buffer is
    /// returned.
    pub(super) fn inflate(
        &mut self,
        core: &mut BalloonCore,
        mem: &GuestMemoryMmap,
        buffer: &Segments,
        deadline: &mut Deadline,
    ) -> Work {
        core.journal.counters.inflate_count += 1;
        if !self.read(core, mem, buffer, deadline) {
            return Work::default();
        }
        let before = core.pool.ledger.ballooned();
        let single = (self.pfns.len() == 1).then_some(Single::Page);
        let mut new = 0;
        let (pool, journal) = (&mut core.pool, &mut core.journal);
        let dropped = merge(&mut self.pfns, |run| new += pool.inflate(run, journal).0);
        journal.counters.refused_pages += dropped;
        let filled = pool.take_filled();
        core.migrations.note_in(single.filter(|_| new == 1));
        core.check_goal(before);
        Work::discard(filled)
    }

    /// Takes pages out of the balloon. The guest may use them once the buffer is returned.
    pub(super) fn deflate(
        &mut self,
        core: &mut BalloonCore,
        mem: &GuestMemoryMmap,
        buffer: &Segments,
        deadline: &mut Deadline,
    ) -> Work {
        core.journal.counters.deflate_count += 1;
        if !self.read(core, mem, buffer, deadline) {
            return Work::default();
        }
        let single = (self.pfns.len() == 1).then_some(Single::Page);
        let mut gone = 0;
        let mut runs = Vec::new();
        let (pool, journal) = (&mut core.pool, &mut core.journal);
        let dropped = merge(&mut self.pfns, |run| {
            gone += pool.deflate(run, journal).0;
            runs.extend(pool.clip(run));
        });
        journal.counters.refused_pages += dropped;
        if core.migrations.note_out(single.filter(|_| gone == 1)) {
            journal.counters.migrated_pages += 1;
        }
        Work::release(runs, pool.take_touched())
    }

    /// Reads the page numbers of `buffer`; false if there are too many.
    fn read(
        &mut self,
        core: &mut BalloonCore,
        mem: &GuestMemoryMmap,
        buffer: &Segments,
        deadline: &mut Deadline,
    ) -> bool {
        if buffer.readable_len() > (MAX_PFNS * PFN_BYTES) as u64 {
            core.journal.bad_buffer("more page numbers than one buffer may have");
            return false;
        }
        self.pfns.clear();
        let mut raw = [0; 256 * PFN_BYTES];
        let mut offset = 0;
        loop {
            let len = buffer.read(mem, offset, &mut raw);
            let (pfns, _cut_off) = raw[..len].as_chunks::<PFN_BYTES>();
            self.pfns.extend(pfns.iter().copied().map(decode_pfn));
            offset += len as u64;
            if len < raw.len() {
                deadline.charge(self.pfns.len() as u64 * Deadline::ENTRY);
                return true;
            }
        }
    }
}
