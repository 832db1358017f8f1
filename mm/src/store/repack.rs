// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compressing pages again with the second codec, as bundles of neighbours.

use super::bundle::{BUNDLE_PAGES, Bundle, bit};
use super::error::StoreError;
use super::page_store::{Page, Store};
use super::slot::{Kept, StoreSlot};
use super::slot_table::Key;
use super::workers::Bench;
use crate::units::PAGE_BYTES;

/// A page as it was found.
struct Found {
    key: Key,
    kept: Kept,
    /// The bundle that it was in, if it was in one.
    bundle: Option<u64>,
    /// Where it is among the others.
    at: usize,
}

impl Store {
    /// Keys that [`repack`](Self::repack) compresses as one: those from a multiple of this on.
    pub const BUNDLE: u32 = BUNDLE_PAGES;

    /// Compresses the pages of the bundle that `key` is in as one piece with the second codec, if
    /// that saves at least an eighth; returns the bytes saved. Pages of one repeated word, and a
    /// bundle that has nothing new, save none; so does one of which a page is replaced meanwhile.
    ///
    /// # Errors
    /// As [`put`](Self::put); the pages stay as they were.
    pub fn repack(&self, key: Key) -> Result<usize, StoreError> {
        let Some(second) = &self.second else { return Ok(0) };
        let (mut cached, mut cached_second) = (None, None);
        let reader = self.workers.bench(&mut cached)?;
        let packer = second.workers.bench(&mut cached_second)?;
        let mut pages = vec![[0; PAGE_BYTES]; BUNDLE_PAGES as usize];
        let found = self.gather(key, &mut pages, reader, packer)?;
        if found.iter().all(|page| matches!(page.kept, Kept::Bundled(_))) {
            return Ok(0);
        }
        let before: usize = found.iter().map(|page| page.kept.bytes()).sum();
        let data = pages[..found.len()].as_flattened();
        let Some(data) = packer.worker.compress(data) else { return Ok(0) };
        if data.len() * 8 > before * 7 {
            return Ok(0);
        }
        // Less than a page: an eighth less than pages that are at most as long.
        let share = (data.len() / found.len()).max(1);
        let mask = found.iter().fold(0, |mask, page| mask | bit(page.key));
        let bundle = Bundle::store(self.zs(), data, mask)?;
        if !self.commit(&found, &pages, bundle, Kept::Bundled(share), reader)? {
            return Ok(0);
        }
        Ok(before.saturating_sub(share * found.len()))
    }

    /// Reads what is compressed, or could be, of the bundle that `key` is in.
    fn gather(
        &self,
        key: Key,
        pages: &mut [Page],
        reader: &mut Bench,
        packer: &mut Bench,
    ) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::with_capacity(pages.len());
        for key in self.bundle_keys(key) {
            let slot = self.table.slot(key)?;
            let kept = slot.kept();
            let bench = match kept {
                Kept::Nothing | Kept::Same(_) => continue,
                Kept::Bundled(_) => &mut *packer,
                Kept::Raw(_) | Kept::Packed(..) => &mut *reader,
            };
            let at = found.len();
            self.restore(key, kept, &mut pages[at], bench)?;
            let bundle = matches!(kept, Kept::Bundled(_)).then(|| self.bundle_of(key)).flatten();
            found.push(Found { key, kept, bundle, at });
        }
        Ok(found)
    }

    /// Puts `bundle` in the place of the pages that it was made of, if they are what they were.
    /// Their slots are locked for as long as it takes to compare them.
    fn commit(
        &self,
        found: &[Found],
        pages: &[Page],
        bundle: Bundle,
        new: Kept,
        reader: &mut Bench,
    ) -> Result<bool, StoreError> {
        let Some(second) = &self.second else { return Ok(false) };
        // Ascending, as any thread that locks more than one.
        let slots: Result<Vec<_>, _> = found.iter().map(|page| self.table.slot(page.key)).collect();
        let mut slots = slots?;
        let mut now: Page = [0; PAGE_BYTES];
        let is_same = found.iter().zip(&slots).all(|(page, slot)| match page.kept {
            kept if slot.kept() != kept => false,
            // Bundles do not change.
            Kept::Bundled(_) => self.bundle_of(page.key) == page.bundle,
            // A handle may have been freed and given again.
            kept => self.restore(page.key, kept, &mut now, reader).is_ok() && now == pages[page.at],
        });
        if !is_same {
            drop(slots);
            bundle.free(self.zs());
            return Ok(false);
        }
        let before = second.bundles.replace(found[0].key, bundle);
        for slot in &mut slots {
            self.counters.add(new);
            **slot = StoreSlot::new(new);
        }
        drop(slots);
        // No page of it is left: those that were in use are in the new one.
        if let Some(before) = before {
            before.free(self.zs());
        }
        found.iter().for_each(|page| self.release(page.kept));
        Ok(true)
    }

    fn bundle_of(&self, key: Key) -> Option<u64> {
        Some(self.second.as_ref()?.bundles.get(key)?.id())
    }

    fn bundle_keys(&self, key: Key) -> impl Iterator<Item = Key> {
        let first = key.0 / BUNDLE_PAGES * BUNDLE_PAGES;
        (first..(first + BUNDLE_PAGES).min(self.capacity())).map(Key)
    }
}
