// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Private anonymous memory, of transparent huge pages or of small pages.

use super::{
    Backing, BackingError, Discarded, Residency, RunVisitor, cut_blocks, first_huge_advice,
    huge_advice, mapped_residency,
};
use crate::sys::mapping::{Mapping, MappingSource};
use crate::sys::pagemap::{MappedAs, Pagemap};
use crate::units::{BLOCK_BYTES, Bytes, HostRange, PAGE_BYTES, usize_from};

/// Attempts to split a huge page: a split fails while the kernel holds references to the page.
const SPLIT_TRIES: u32 = 4;

/// Private anonymous memory.
#[derive(Debug)]
pub struct Anonymous {
    mapping: Mapping,
    pagemap: Pagemap,
    huge: bool,
}

impl Anonymous {
    /// Reserves `len` bytes, aligned to 2 MiB, backed by huge pages where available, else by small
    /// ones.
    ///
    /// # Errors
    /// [`BackingError`], with the host's error.
    pub fn new(len: Bytes, huge: bool) -> Result<Self, BackingError> {
        let mapping = Mapping::new(MappingSource::Anonymous, usize_from(len.0), BLOCK_BYTES)
            .map_err(|source| BackingError::Map { len, source })?;
        first_huge_advice(&mapping, huge)?;
        Ok(Self { mapping, pagemap: Pagemap::open().map_err(BackingError::Pagemap)?, huge })
    }

    /// Splits the huge page at the start of `part`, if it is still one.
    fn split(&self, part: HostRange) -> Result<bool, BackingError> {
        let page = part.slice(0, PAGE_BYTES).expect("a range has a page");
        for _ in 0..SPLIT_TRIES {
            let advice = self.mapping.split_huge(page);
            advice.map_err(|source| BackingError::Advise { what: "split", range: page, source })?;
            if self.residency(page)?.huge != Some(page.bytes()) {
                return Ok(true);
            }
            std::thread::yield_now();
        }
        Ok(false)
    }
}

impl Backing for Anonymous {
    fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Read residency of all ranges first: a split unmaps pages that were never written, so a later
    /// range in the same huge page would appear absent.
    fn discard(&self, ranges: &[HostRange]) -> Result<Discarded, BackingError> {
        let mut done = Discarded::default();
        let mut resident = Bytes(0);
        let mut cut = Vec::new();
        for &range in ranges {
            done.asked = done.asked.saturating_add(range.bytes());
            let each = |run: HostRange, mapped| {
                resident = resident.saturating_add(run.bytes());
                if mapped != MappedAs::Small {
                    cut.extend(cut_blocks(run));
                }
            };
            self.pagemap.walk(range, each).map_err(BackingError::Pagemap)?;
        }
        // Ascending, so the parts of one huge page follow each other.
        for parts in cut.chunk_by(|a, b| a.addr() / BLOCK_BYTES == b.addr() / BLOCK_BYTES) {
            if self.split(parts[0])? {
                done.splits += 1;
            } else {
                let held = parts.iter().map(HostRange::bytes).fold(Bytes(0), Bytes::saturating_add);
                done.held = done.held.saturating_add(held);
            }
        }
        for &range in ranges {
            let advice = self.mapping.discard(range);
            advice.map_err(|source| BackingError::Advise { what: "discard", range, source })?;
        }
        done.freed = resident.saturating_sub(done.held);
        Ok(done)
    }

    fn may_be_huge(&self) -> bool {
        self.huge
    }

    fn allow_huge(&self, range: HostRange, allow: bool) -> Result<(), BackingError> {
        if !self.huge {
            return Ok(());
        }
        huge_advice(&self.mapping, range, allow)
    }

    fn walk(&self, range: HostRange, found: &mut RunVisitor<'_>) -> Result<(), BackingError> {
        self.pagemap.walk(range, found).map_err(BackingError::Pagemap)
    }

    fn residency(&self, range: HostRange) -> Result<Residency, BackingError> {
        mapped_residency(&self.pagemap, range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::units::BLOCK_SIZE;

    fn backing(huge: bool) -> Anonymous {
        Anonymous::new(Bytes(4 * BLOCK_SIZE), huge).unwrap()
    }

    fn part(b: &Anonymous, page: usize, pages: usize) -> HostRange {
        b.mapping().range().slice(page * PAGE_BYTES, pages * PAGE_BYTES).unwrap()
    }

    fn resident(b: &Anonymous) -> Residency {
        b.residency(b.mapping().range()).unwrap()
    }

    #[test]
    fn small_pages_come_and_go() {
        let b = backing(false);
        b.populate(part(&b, 0, 100)).unwrap();
        assert_eq!(resident(&b), Residency { resident: Bytes(100 << 12), huge: Some(Bytes(0)) });
        let done = b.discard(&[part(&b, 10, 5), part(&b, 90, 30)]).unwrap();
        let expected =
            Discarded { asked: Bytes(35 << 12), freed: Bytes(15 << 12), held: Bytes(0), splits: 0 };
        assert_eq!(done, expected);
        assert_eq!(resident(&b).resident, Bytes(85 << 12));
    }

    #[test]
    fn what_a_split_unmaps_counts_as_resident() {
        let b = backing(true);
        let block = part(&b, 512, 512);
        b.populate(block).unwrap();
        if resident(&b).huge != Some(Bytes(BLOCK_SIZE)) {
            eprintln!("skipped: this host has no huge page to spare");
            return;
        }
        // Nothing was written, so a split may unmap the whole block.
        let done = b.discard(&[part(&b, 600, 8), part(&b, 700, 16)]).unwrap();
        let expected =
            Discarded { asked: Bytes(24 << 12), freed: Bytes(24 << 12), held: Bytes(0), splits: 1 };
        assert_eq!(done, expected);
    }

    #[test]
    fn a_block_is_collapsed_again() {
        let b = backing(true);
        b.allow_huge(part(&b, 0, 512), false).unwrap();
        b.populate(part(&b, 0, 512)).unwrap();
        assert_eq!(resident(&b).huge, Some(Bytes(0)));
        b.allow_huge(part(&b, 0, 512), true).unwrap();
        match b.collapse(part(&b, 0, 512)) {
            Ok(()) => assert_eq!(resident(&b).huge, Some(Bytes(BLOCK_SIZE))),
            Err(e) => eprintln!("this host cannot collapse now: {e}"),
        }
    }
}
