// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Positions in guest-physical memory: pages, blocks, and ranges of pages.

use std::fmt;

use vm_memory::{Address, GuestAddress};

use super::{Bytes, PAGE_SHIFT, PAGE_SIZE, PAGES_PER_BLOCK, Pages};

/// A guest page frame number: a guest-physical address in units of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(pub u64);

impl Pfn {
    /// The page that `addr` lies in.
    pub const fn containing(addr: GuestAddress) -> Self {
        Self(addr.0 >> PAGE_SHIFT)
    }

    /// The guest-physical address of the page, or `None` beyond the address space.
    pub const fn checked_address(self) -> Option<GuestAddress> {
        if self.0 > u64::MAX >> PAGE_SHIFT {
            return None;
        }
        Some(GuestAddress(self.0 << PAGE_SHIFT))
    }

    /// The block that the page lies in.
    pub const fn block(self) -> BlockId {
        BlockId(self.0 / PAGES_PER_BLOCK)
    }

    /// The page's place in its block, from 0 to 511.
    pub const fn index_in_block(self) -> usize {
        // Fits: the remainder is below 512.
        (self.0 % PAGES_PER_BLOCK) as usize
    }

    /// Whether a block begins with this page.
    pub const fn is_block_aligned(self) -> bool {
        self.0.is_multiple_of(PAGES_PER_BLOCK)
    }

    /// The page `pages` further on.
    pub fn checked_add(self, pages: Pages) -> Option<Self> {
        self.0.checked_add(pages.0).map(Self)
    }

    /// The distance from `base` up to this page.
    pub fn checked_offset_from(self, base: Self) -> Option<Pages> {
        self.0.checked_sub(base.0).map(Pages)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

/// The number of a block: a guest-physical address in units of 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u64);

impl BlockId {
    /// The pages of the block, or `None` beyond the address space.
    pub fn checked_range(self) -> Option<GuestRange> {
        let start = Pfn(self.0.checked_mul(PAGES_PER_BLOCK)?);
        GuestRange::new(start, Pages(PAGES_PER_BLOCK))
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {:#x}", self.0)
    }
}

/// A run of pages in guest-physical memory; never empty, and its end is an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestRange {
    start: Pfn,
    pages: Pages,
}

impl GuestRange {
    /// `pages` pages from `start`; `None` if `pages` is 0, or beyond the address space.
    pub fn new(start: Pfn, pages: Pages) -> Option<Self> {
        if pages.0 == 0 {
            return None;
        }
        start.checked_add(pages)?.checked_address()?;
        Some(Self { start, pages })
    }

    /// The pages from `start` up to, not including, `end`.
    pub fn from_bounds(start: Pfn, end: Pfn) -> Option<Self> {
        Self::new(start, end.checked_offset_from(start)?)
    }

    /// The range of bytes from `addr`, which must begin and end with a page.
    pub fn from_bytes(addr: GuestAddress, len: Bytes) -> Option<Self> {
        if !addr.0.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        Self::new(Pfn::containing(addr), len.as_pages())
    }

    /// The whole pages inside the bytes from `addr`: partial pages at the edges are left out.
    pub fn inside_bytes(addr: GuestAddress, len: Bytes) -> Option<Self> {
        let end = addr.checked_add(len.0)?;
        let start = addr.0.checked_next_multiple_of(PAGE_SIZE)?;
        Self::from_bounds(Pfn(start >> PAGE_SHIFT), Pfn::containing(end))
    }

    /// First page.
    pub const fn start(&self) -> Pfn {
        self.start
    }

    /// The page after the last.
    pub const fn end(&self) -> Pfn {
        // Cannot overflow: `new` checked it.
        Pfn(self.start.0 + self.pages.0)
    }

    /// Length in pages.
    pub const fn pages(&self) -> Pages {
        self.pages
    }

    /// Length in bytes.
    pub const fn bytes(&self) -> Bytes {
        self.pages.bytes()
    }

    /// Address of the first byte.
    pub const fn address(&self) -> GuestAddress {
        GuestAddress(self.start.0 << PAGE_SHIFT)
    }

    /// Whether `pfn` is one of the range's pages.
    pub const fn contains(&self, pfn: Pfn) -> bool {
        self.start.0 <= pfn.0 && pfn.0 < self.end().0
    }

    /// Whether every page of `other` is one of this range's.
    pub const fn covers(&self, other: &Self) -> bool {
        self.start.0 <= other.start.0 && other.end().0 <= self.end().0
    }

    /// The pages that both have.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::from_bounds(self.start.max(other.start), self.end().min(other.end()))
    }

    /// The blocks that lie wholly inside, as block numbers.
    pub fn whole_blocks(&self) -> impl DoubleEndedIterator<Item = BlockId> + use<> {
        (self.start.0.div_ceil(PAGES_PER_BLOCK)..self.end().0 / PAGES_PER_BLOCK).map(BlockId)
    }

    /// The blocks that the range has at least a page of.
    pub fn touched_blocks(&self) -> impl DoubleEndedIterator<Item = BlockId> + use<> {
        (self.start.0 / PAGES_PER_BLOCK..self.end().0.div_ceil(PAGES_PER_BLOCK)).map(BlockId)
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = u128::from(self.end().0) << PAGE_SHIFT;
        write!(f, "{:#x}..{:#x}", self.address().raw_value(), end)
    }
}
