// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RESOURCE_MIGRATE_BACKING and MIGRATE_PAGES: pages of a backing that move while in use.
//!
//! The guest has unmapped the pages from its CPUs and asks the device to copy them, as only the
//! device can exclude its own readers. There are three phases: everything is checked, with no
//! effect on error; then every page is copied; then they are swapped one by one, which cannot fail.
//!
//! A deadline may interrupt each phase. Readers in between (a viewer, the cursor queue) see the old
//! page or the new one, which have the same contents and both belong to the guest until the
//! response; other commands of the control queue wait. After the response the device holds no
//! address of an old page.

use mm::units::{PAGE_BYTES, usize_from};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use std::collections::BTreeMap;

use super::protocol::{MigrateEntry, MigratePage, ResourceId};
use super::resource_backing::{CmaRegions, PAGE_SIZE, ResourceBacking, is_ram};
use super::response::{Fault, PageMove};
use crate::virtio::{Deadline, GuestMemoryMmap, Progress};

/// A migration of pages of one backing.
#[derive(Debug)]
pub(super) struct Migration {
    entries: Vec<MigrateEntry>,
    phase: MigrationPhase,
}

#[derive(Debug, Clone, Copy)]
enum MigrationPhase {
    Check,
    /// Copies page `index`, of which `done` bytes are copied.
    Copy {
        index: usize,
        done: u64,
    },
    /// Swaps page `index`.
    Swap {
        index: usize,
    },
}

impl Migration {
    /// Moves the pages that `entries` name.
    pub(super) fn new(entries: Vec<MigrateEntry>) -> Self {
        Self { entries, phase: MigrationPhase::Check }
    }

    /// Pages to move.
    pub(super) fn pages(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Continues until all pages have moved or `deadline` passes. On error nothing has changed.
    pub(super) fn run(
        &mut self,
        mem: &GuestMemoryMmap,
        backing: &mut ResourceBacking,
        cma: &CmaRegions,
        deadline: &mut Deadline,
    ) -> Result<Progress, Fault> {
        loop {
            self.phase = match self.phase {
                MigrationPhase::Check => {
                    check(mem, backing, &self.entries)?;
                    deadline.charge(self.pages() * Deadline::ENTRY);
                    MigrationPhase::Copy { index: 0, done: 0 }
                }
                MigrationPhase::Copy { index, done } => match self.entries.get(index) {
                    Some(entry) => {
                        let done = done + copy_rest(mem, backing, entry, done, deadline)?;
                        if done == PAGE_SIZE {
                            MigrationPhase::Copy { index: index + 1, done: 0 }
                        } else {
                            MigrationPhase::Copy { index, done }
                        }
                    }
                    None => MigrationPhase::Swap { index: 0 },
                },
                MigrationPhase::Swap { index } => match self.entries.get(index) {
                    Some(entry) => {
                        let addr = GuestAddress(entry.addr.get());
                        let runs = backing.replace_page(entry.offset.get(), addr, cma);
                        deadline.charge((runs + 1) * Deadline::ENTRY);
                        MigrationPhase::Swap { index: index + 1 }
                    }
                    None => return Ok(Progress::Done),
                },
            };
            if deadline.passed() {
                return Ok(Progress::More);
            }
        }
    }
}

/// A migration of pages of several resources (MIGRATE_PAGES): either all pages of one resource move
/// or none, and resources are independent.
#[derive(Debug)]
pub(super) struct Batch {
    pages: Vec<MigratePage>,
    todo: BTreeMap<ResourceId, Migration>,
    outcomes: BTreeMap<ResourceId, PageMove>,
}

impl Batch {
    /// Moves `pages`, at least one.
    pub(super) fn new(pages: Vec<MigratePage>) -> Result<Self, Fault> {
        if pages.is_empty() {
            return Err(Fault::Parameter);
        }
        let mut resources: BTreeMap<ResourceId, Vec<MigrateEntry>> = BTreeMap::new();
        for page in &pages {
            resources.entry(page.resource.get()).or_default().push(page.entry);
        }
        let todo = resources.into_iter().map(|(id, entries)| (id, Migration::new(entries)));
        Ok(Self { pages, todo: todo.collect(), outcomes: BTreeMap::new() })
    }

    /// Continues until all resources are done or `deadline` passes. `run` continues one of them;
    /// its error means that nothing of that resource has changed.
    pub(super) fn run(
        &mut self,
        deadline: &mut Deadline,
        mut run: impl FnMut(ResourceId, &mut Migration, &mut Deadline) -> Result<Progress, Fault>,
    ) -> Progress {
        while let Some((id, mut migration)) = self.todo.pop_first() {
            deadline.charge(Deadline::ENTRY);
            match run(id, &mut migration, deadline) {
                Ok(Progress::More) => {
                    self.todo.insert(id, migration);
                }
                Ok(Progress::Done) => {
                    self.outcomes.insert(id, PageMove::Moved);
                }
                Err(_) => {
                    self.outcomes.insert(id, PageMove::Refused);
                }
            }
            if deadline.passed() {
                return Progress::more_if(!self.todo.is_empty());
            }
        }
        Progress::Done
    }

    /// Result for each page, in the order of the command.
    pub(super) fn outcomes(&self) -> Vec<PageMove> {
        let outcome = |page: &MigratePage| self.outcomes.get(&page.resource.get()).copied();
        self.pages.iter().map(|page| outcome(page).unwrap_or(PageMove::Refused)).collect()
    }
}

/// Checks that every entry names a page of the backing and a destination page in RAM, and no page
/// twice.
fn check(
    mem: &GuestMemoryMmap,
    backing: &ResourceBacking,
    entries: &[MigrateEntry],
) -> Result<(), Fault> {
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
fn page(mem: &GuestMemoryMmap, addr: u64) -> Option<VolatileSlice<'_>> {
    mem.get_slice(GuestAddress(addr), PAGE_BYTES).ok()
}

/// Copies the rest of a page, of which `done` bytes are copied, until `deadline` passes; returns
/// the number of bytes copied. The page may consist of several runs.
fn copy_rest(
    mem: &GuestMemoryMmap,
    backing: &ResourceBacking,
    entry: &MigrateEntry,
    done: u64,
    deadline: &mut Deadline,
) -> Result<u64, Fault> {
    let to = page(mem, entry.addr.get()).ok_or(Fault::Parameter)?;
    let mut at = usize_from(done);
    let copy = |piece: VolatileSlice<'_>| {
        let len = piece.len();
        if let Ok(part) = to.subslice(at, len) {
            piece.copy_to_volatile_slice(part);
        }
        at += len;
    };
    let offset = entry.offset.get() + done;
    backing.for_each(mem, offset, PAGE_SIZE - done, deadline, copy).ok_or(Fault::Parameter)
}

#[cfg(test)]
mod tests {
    use mm::units::{GuestRange, Pfn};
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;
    use crate::gpu::protocol::MemEntry;

    /// Moves pages in rounds of so little work that each is cut, and compares all in between.
    fn migrate(
        mem: &GuestMemoryMmap,
        backing: &mut ResourceBacking,
        entries: &[MigrateEntry],
    ) -> Result<u64, Fault> {
        let mut migration = Migration::new(entries.to_vec());
        let before = contents(mem, backing);
        loop {
            let mut deadline = Deadline::of_work(1);
            let progress = migration.run(mem, backing, &cma(), &mut deadline)?;
            assert_eq!(contents(mem, backing), before, "a reader between two rounds");
            if progress == Progress::Done {
                return Ok(migration.pages());
            }
        }
    }

    fn cma() -> CmaRegions {
        let region = |start, end| GuestRange::from_bounds(Pfn(start), Pfn(end)).unwrap();
        CmaRegions::new(vec![region(3, 9), region(44, 60)])
    }

    fn backing(mem: &GuestMemoryMmap, entries: &[MemEntry]) -> (ResourceBacking, u64) {
        ResourceBacking::of(mem, entries, &cma()).unwrap()
    }

    const PAGES: u64 = 64;

    fn ram() -> GuestMemoryMmap {
        // Two regions that touch, a hole, and a third.
        let at = |page| GuestAddress(page * PAGE_SIZE);
        let bytes = |pages: u64| usize::try_from(pages * PAGE_SIZE).unwrap();
        GuestMemoryMmap::from_ranges(&[
            (at(0), bytes(16)),
            (at(16), bytes(16)),
            (at(40), bytes(24)),
        ])
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

    fn contents(mem: &GuestMemoryMmap, backing: &ResourceBacking) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(backing.len()).unwrap()];
        assert!(backing.read(mem, 0, &mut out, &mut Deadline::never()));
        out
    }

    proptest! {
        /// Against a model that is a list of page numbers: contents stay, addresses follow, runs
        /// never exceed the charge, and invalid input changes nothing.
        #[test]
        fn pages_move_and_bytes_stay(
            start in prop::collection::vec((0..PAGES).prop_filter("RAM", |p| is_page(*p)), 1..12),
            moves in prop::collection::vec(
                prop::collection::vec((0..13u64, 0..PAGES + 2), 0..4), 0..12),
        ) {
            let mem = ram();
            let mut model = start.clone();
            let (mut backing, worst) = backing(&mem, &entries(&start));
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
                prop_assert_eq!(&backing, &self::backing(&mem, &entries(&model)).0);
                backing.validate(&cma());
                prop_assert!(backing.runs() <= worst);
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
            let (mut backing, worst) = backing(&mem, &entries);
            let before = contents(&mem, &backing);
            let entry = MigrateEntry { offset: (index * PAGE_SIZE).into(), addr: (50 * PAGE_SIZE).into() };
            prop_assert_eq!(migrate(&mem, &mut backing, &[entry]), Ok(1));
            mem.write_slice(&[0; 16384], GuestAddress(0)).unwrap();
            let after = contents(&mem, &backing);
            let page = index as usize * 4096..(index as usize + 1) * 4096;
            prop_assert_eq!(&after[page.clone()], &before[page]);
            prop_assert!(after.iter().filter(|byte| **byte != 0).count() <= 4096);
            backing.validate(&cma());
            prop_assert!(backing.runs() <= worst);
        }
    }

    #[test]
    fn old_pages_are_not_known_any_more() {
        let mem = ram();
        let (mut backing, _) = backing(&mem, &entries(&[3, 4, 5]));
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
        let (mut backing, _) = backing(&mem, &entries(&[1]));
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
