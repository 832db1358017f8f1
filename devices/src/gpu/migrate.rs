// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RESOURCE_MIGRATE_BACKING: pages of a backing that move while in use.
//!
//! The guest has taken the page away from its own CPUs and now asks the device, which alone can
//! keep its readers and writers away, to copy it. Two phases: first everything is checked, and
//! nothing has happened if anything is wrong; then every page is copied, and only then all are
//! swapped, which cannot fail. Commands run one at a time, so that none sees the middle, and
//! displays read through the backing only during a call: after the answer nobody knows the old
//! pages any more.

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::backing::{Backing, PAGE_SIZE, is_ram};
use super::protocol::MigrateEntry;
use super::response::Fault;
use crate::virtio::GuestMemory;

/// Moves the pages that `entries` name; on an error nothing has changed.
///
/// Returns the number of pages moved.
pub(super) fn migrate(
    mem: &GuestMemory,
    backing: &mut Backing,
    entries: &[MigrateEntry],
) -> Result<u64, Fault> {
    check(mem, backing, entries)?;
    for entry in entries {
        let to = page(mem, entry.addr.get()).ok_or(Fault::Parameter)?;
        if !copy_page(mem, backing, entry.offset.get(), &to) {
            return Err(Fault::Parameter);
        }
    }
    for entry in entries {
        backing.replace_page(entry.offset.get(), GuestAddress(entry.addr.get()));
    }
    Ok(entries.len() as u64)
}

/// Every entry is a page of the backing, and to be a page of RAM; none is named twice.
fn check(mem: &GuestMemory, backing: &Backing, entries: &[MigrateEntry]) -> Result<(), Fault> {
    let mut offsets: Vec<u64> = entries.iter().map(|entry| entry.offset.get()).collect();
    offsets.sort_unstable();
    let good = |entry: &MigrateEntry| {
        let (offset, addr) = (entry.offset.get(), entry.addr.get());
        offset % PAGE_SIZE == 0
            && addr % PAGE_SIZE == 0
            && backing.holds(offset, PAGE_SIZE)
            && is_ram(mem, GuestAddress(addr), PAGE_SIZE)
            && page(mem, addr).is_some()
    };
    let twice = offsets.windows(2).any(|pair| pair[0] == pair[1]);
    if entries.is_empty() || twice || !entries.iter().all(good) {
        return Err(Fault::Parameter);
    }
    Ok(())
}

/// The page of RAM at `addr`, in one piece.
fn page(mem: &GuestMemory, addr: u64) -> Option<VolatileSlice<'_>> {
    mem.get_slice(GuestAddress(addr), usize::try_from(PAGE_SIZE).ok()?).ok()
}

/// Copies the page that `backing` has at `offset`, which may be in pieces, to `to`.
fn copy_page(mem: &GuestMemory, backing: &Backing, offset: u64, to: &VolatileSlice<'_>) -> bool {
    let mut done = 0;
    backing.for_each(mem, offset, to.len(), |piece| {
        let len = piece.len();
        if let Ok(part) = to.subslice(done, len) {
            piece.copy_to_volatile_slice(part);
            done += len;
        }
    }) && done == to.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;
    use crate::gpu::protocol::MemEntry;

    const PAGES: u64 = 64;

    fn ram() -> GuestMemory {
        // Two regions that touch, a hole, and a third.
        let at = |page| GuestAddress(page * PAGE_SIZE);
        let bytes = |pages: u64| usize::try_from(pages * PAGE_SIZE).unwrap();
        GuestMemory::from_ranges(&[(at(0), bytes(16)), (at(16), bytes(16)), (at(40), bytes(24))])
            .unwrap()
    }

    fn is_page(page: u64) -> bool {
        page < 32 || (40..PAGES).contains(&page)
    }

    fn entries(pages: &[u64]) -> Vec<MemEntry> {
        let entry = |page: &u64| MemEntry {
            addr: (page * PAGE_SIZE).into(),
            length: 4096.into(),
            padding: 0.into(),
        };
        pages.iter().map(entry).collect()
    }

    fn contents(mem: &GuestMemory, backing: &Backing) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(backing.len()).unwrap()];
        assert!(backing.read(mem, 0, &mut out));
        out
    }

    proptest! {
        /// Against a model that is a list of page numbers: contents stay, places follow, runs are
        /// never more than charged for, and what is wrong changes nothing at all.
        #[test]
        fn pages_move_and_bytes_stay(
            start in prop::collection::vec((0..PAGES).prop_filter("RAM", |p| is_page(*p)), 1..12),
            moves in prop::collection::vec(
                prop::collection::vec((0..13u64, 0..PAGES + 2), 0..4), 0..12),
        ) {
            let mem = ram();
            let mut model = start.clone();
            let mut backing = Backing::new(&mem, &entries(&start)).unwrap();
            let worst = Backing::worst_runs(start.len(), backing.len());
            for (n, page) in start.iter().enumerate() {
                mem.write_slice(&[n as u8 + 1; 4096], GuestAddress(page * PAGE_SIZE)).unwrap();
            }
            for batch in moves {
                // A destination in use is the driver's own mistake; drivers do not make it.
                let mut free: Vec<u64> = Vec::new();
                let batch: Vec<(u64, u64)> = batch.into_iter().filter(|(_, to)| {
                    let fresh = !model.contains(to) && !free.contains(to);
                    free.push(*to);
                    fresh
                }).collect();
                let wire: Vec<MigrateEntry> = batch.iter().map(|(index, to)| MigrateEntry {
                    offset: (index * PAGE_SIZE).into(),
                    addr: (to * PAGE_SIZE).into(),
                }).collect();
                let mut seen = std::collections::HashSet::new();
                let fine = !batch.is_empty() && batch.iter().all(|(index, to)| {
                    (*index as usize) < model.len() && is_page(*to) && seen.insert(*index)
                });
                let before = (backing.clone(), contents(&mem, &backing));
                let moved = migrate(&mem, &mut backing, &wire);
                prop_assert_eq!(moved, if fine { Ok(batch.len() as u64) } else { Err(Fault::Parameter) });
                if fine {
                    for (index, to) in batch {
                        model[index as usize] = to;
                    }
                } else {
                    prop_assert_eq!(&backing, &before.0);
                }
                prop_assert_eq!(contents(&mem, &backing), before.1);
                prop_assert_eq!(&backing, &Backing::new(&mem, &entries(&model)).unwrap());
                prop_assert!(backing.runs() as u64 <= worst);
            }
        }

        /// A backing of odd pieces: a page that is in several of them becomes one.
        #[test]
        fn pages_in_pieces_move_too(cuts in prop::collection::btree_set(1..16384u32, 0..6), index in 0..4u64) {
            let mem = ram();
            let bytes: Vec<u8> = (0..16384u32).map(|i| (i * 7 + i / 256) as u8).collect();
            mem.write_slice(&bytes, GuestAddress(0)).unwrap();
            // Pieces in reverse order of address, each from a different place.
            let mut entries = Vec::new();
            let mut from = 0;
            for to in cuts.into_iter().chain([16384]) {
                entries.push(MemEntry { addr: u64::from(from).into(), length: (to - from).into(), padding: 0.into() });
                from = to;
            }
            entries.reverse();
            let mut backing = Backing::new(&mem, &entries).unwrap();
            let worst = Backing::worst_runs(entries.len(), backing.len());
            let before = contents(&mem, &backing);
            let entry = MigrateEntry { offset: (index * PAGE_SIZE).into(), addr: (50 * PAGE_SIZE).into() };
            prop_assert_eq!(migrate(&mem, &mut backing, &[entry]), Ok(1));
            mem.write_slice(&[0; 16384], GuestAddress(0)).unwrap();
            let after = contents(&mem, &backing);
            let page = index as usize * 4096..(index as usize + 1) * 4096;
            prop_assert_eq!(&after[page.clone()], &before[page]);
            prop_assert!(after.iter().filter(|byte| **byte != 0).count() <= 4096);
            prop_assert!(backing.runs() as u64 <= worst);
        }
    }

    #[test]
    fn old_pages_are_not_known_any_more() {
        let mem = ram();
        let mut backing = Backing::new(&mem, &entries(&[3, 4, 5])).unwrap();
        assert_eq!(backing.runs(), 1);
        let entry =
            |offset: u64, addr: u64| MigrateEntry { offset: offset.into(), addr: addr.into() };
        migrate(&mem, &mut backing, &[entry(4096, 9 * 4096)]).unwrap();
        mem.write_slice(&[0xee; 4096], GuestAddress(4 * 4096)).unwrap();
        assert!(!contents(&mem, &backing).contains(&0xee));
        // And back: the three runs become one again.
        migrate(&mem, &mut backing, &[entry(4096, 4 * 4096)]).unwrap();
        assert_eq!(backing.runs(), 1);
    }

    #[test]
    fn overflowing_entries_are_refused() {
        let mem = ram();
        let mut backing = Backing::new(&mem, &entries(&[1])).unwrap();
        for (offset, addr) in [
            (u64::MAX - 4095, 0),
            (0, u64::MAX - 4095),
            (1, 0),
            (0, 1),
            (4096, 0),
            (0, 32 * 4096),
            (0, 39 * 4096),
            (0, PAGES * 4096),
        ] {
            let entry = MigrateEntry { offset: offset.into(), addr: addr.into() };
            assert_eq!(migrate(&mem, &mut backing, &[entry]), Err(Fault::Parameter));
        }
        assert_eq!(migrate(&mem, &mut backing, &[]), Err(Fault::Parameter));
    }
}
