// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Huge pages that the administrator set aside (hugetlbfs): never split, never collapsed.

use super::{
    Backing, BackingError, Discarded, Residency, RunVisitor, cut_ends, mappable, mapped_residency,
    one_by_one,
};
use crate::sys::mapping::{HugePageSize, Mapping, Source};
use crate::sys::pagemap::Pagemap;
use crate::units::{Bytes, HostRange};

/// Guest RAM in huge pages of the host's pool.
///
/// All of it is reserved at the start. What is given back goes to the pool, for other guests; if
/// they take it, the guest cannot have it again, and the monitor says so when it tries.
#[derive(Debug)]
pub struct Hugetlb {
    mapping: Mapping,
    pagemap: Pagemap,
    page: HugePageSize,
}

impl Hugetlb {
    /// Reserves `len` bytes, a multiple of the page size and aligned to it.
    pub fn new(len: Bytes, page: HugePageSize) -> Result<Self, BackingError> {
        let size = Bytes(page.bytes() as u64);
        let mapping = Mapping::new(Source::Hugetlb(page), mappable(len)?, page.bytes())
            .map_err(|source| BackingError::NoHugePages { len, page: size, source })?;
        Ok(Self { mapping, pagemap: Pagemap::open().map_err(BackingError::Pagemap)?, page })
    }

    /// The whole huge pages inside `range`.
    fn whole_pages(&self, range: HostRange) -> Option<HostRange> {
        let start = range.addr().next_multiple_of(self.page.bytes());
        let end = range.end() - range.end() % self.page.bytes();
        HostRange::new(start, end.checked_sub(start)?)
    }
}

impl Backing for Hugetlb {
    fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn discard(&self, ranges: &[HostRange]) -> Result<Discarded, BackingError> {
        one_by_one(ranges, |range| {
            let mut done = Discarded { asked: range.bytes(), ..Discarded::default() };
            for part in cut_ends(range, self.page.bytes()) {
                done.held = done.held.saturating_add(self.residency(part)?.resident);
            }
            if let Some(whole) = self.whole_pages(range) {
                done.freed = self.residency(whole)?.resident;
                let advice = self.mapping.discard(whole);
                let what = "discard";
                advice.map_err(|source| BackingError::Advise { what, range: whole, source })?;
            }
            Ok(done)
        })
    }

    fn collapse(&self, _range: HostRange) -> Result<(), BackingError> {
        Ok(())
    }

    fn allow_huge(&self, _range: HostRange, _allow: bool) -> Result<(), BackingError> {
        Ok(())
    }

    fn walk(&self, range: HostRange, found: &mut RunVisitor<'_>) -> Result<(), BackingError> {
        self.pagemap.walk(range, found).map_err(BackingError::Pagemap)
    }

    fn residency(&self, range: HostRange) -> Result<Residency, BackingError> {
        let mapped = mapped_residency(&self.pagemap, range)?;
        Ok(Residency { resident: mapped.resident, huge: Some(mapped.resident) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BLOCK_SIZE, PAGE_BYTES};

    fn free_huge_pages() -> u64 {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find(|l| l.starts_with("HugePages_Free:"));
        line.and_then(|l| l.split_whitespace().nth(1)).map_or(0, |n| n.parse().unwrap())
    }

    /// With pages set aside, whole ones come back and parts do not; without, the error says what
    /// to do.
    #[test]
    fn whole_pages_go_back_to_the_pool() {
        let b = match Hugetlb::new(Bytes(2 * BLOCK_SIZE), HugePageSize::TwoMib) {
            Err(e) => {
                assert!(free_huge_pages() < 2);
                assert!(e.to_string().contains("nr_hugepages"));
                return;
            }
            Ok(b) => b,
        };
        let all = b.mapping().range();
        b.populate(all).unwrap();
        let before = free_huge_pages();
        let from_third_page = all.slice(2 * PAGE_BYTES, all.len() - 2 * PAGE_BYTES).unwrap();
        let done = b.discard(&[from_third_page]).unwrap();
        assert_eq!(done.freed, Bytes(BLOCK_SIZE));
        assert_eq!(done.held, Bytes(BLOCK_SIZE - 8192));
        assert_eq!(free_huge_pages(), before + 1);
    }

    #[test]
    fn lengths_are_whole_huge_pages() {
        assert!(Hugetlb::new(Bytes(BLOCK_SIZE), HugePageSize::OneGib).is_err());
    }
}
