// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One type for each kind of number, and every conversion between them, checked.
//!
//! ```text
//! GuestAddress ──Pfn──┬── BlockId        a place in guest-physical memory
//!                     └── GuestRange     a run of pages there
//! HostRange                              a run of bytes in this process
//! Pages, Bytes                           amounts
//! ```
//!
//! There is no `+` or `-` on places: `checked_add` and its siblings name what happens at the edge.
//!
//! ```
//! use mm::units::{Bytes, GuestRange, Pages, Pfn};
//!
//! let range = GuestRange::new(Pfn(511), Pages(2)).unwrap();
//! assert_eq!(range.bytes(), Bytes(8192));
//! assert_eq!(range.touched_blocks().count(), 2);
//! assert_eq!(range.whole_blocks().count(), 0);
//! assert_eq!(GuestRange::new(Pfn(u64::MAX), Pages(1)), None);
//! ```

use std::fmt;

use vm_memory::{Address, GuestAddress};

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page: the unit of the guest's page tables and of the balloon.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of [`BLOCK_SIZE`].
pub const BLOCK_SHIFT: u32 = 21;
/// Bytes in a block: a huge page, one PMD entry, the unit of give-back.
pub const BLOCK_SIZE: u64 = 1 << BLOCK_SHIFT;
/// Pages in a block.
pub const PAGES_PER_BLOCK: u64 = 1 << (BLOCK_SHIFT - PAGE_SHIFT);

/// [`PAGE_SIZE`] as a length in this process.
pub const PAGE_BYTES: usize = PAGE_SIZE as usize;
/// [`BLOCK_SIZE`] as a length in this process.
pub const BLOCK_BYTES: usize = BLOCK_SIZE as usize;

const _: () = assert!(PAGES_PER_BLOCK == 512);

/// An amount of memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `mib` mebibytes, or `None` if that does not fit.
    pub const fn from_mib(mib: u64) -> Option<Self> {
        match mib.checked_mul(1 << 20) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// `mib` mebibytes, or the largest amount if that does not fit.
    pub const fn saturating_from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// Whole mebibytes, rounded down.
    pub const fn as_mib(self) -> u64 {
        self.0 >> 20
    }

    /// Whole pages, rounded down.
    pub const fn as_pages(self) -> Pages {
        Pages(self.0 >> PAGE_SHIFT)
    }

    /// This amount as a length in this process, or `None` if it does not fit.
    pub fn as_usize(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }

    /// Whether this is a whole number of `unit`s.
    pub const fn is_multiple_of(self, unit: u64) -> bool {
        self.0.is_multiple_of(unit)
    }

    /// The sum, or the largest amount that fits.
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or zero.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b if b != 0 && b.is_multiple_of(1 << 30) => write!(f, "{} GiB", b >> 30),
            b if b != 0 && b.is_multiple_of(1 << 20) => write!(f, "{} MiB", b >> 20),
            b if b != 0 && b.is_multiple_of(1 << 10) => write!(f, "{} KiB", b >> 10),
            b => write!(f, "{b} bytes"),
        }
    }
}

/// An amount of memory in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pages(pub u64);

impl Pages {
    /// The same amount in bytes, or `None` if that does not fit.
    pub const fn checked_bytes(self) -> Option<Bytes> {
        match self.0.checked_mul(PAGE_SIZE) {
            Some(bytes) => Some(Bytes(bytes)),
            None => None,
        }
    }

    /// The same amount in bytes; an amount that does not fit is the largest that does.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(PAGE_SIZE))
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages", self.0)
    }
}

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
    /// `pages` pages from `start`; `None` if that is none, or reaches beyond the address space.
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

/// A run of bytes in this process's address space, whole pages of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostRange {
    addr: usize,
    len: usize,
}

impl HostRange {
    /// `len` bytes from `addr`; `None` unless both are multiples of the page size, `len` is not
    /// zero, and the end is an address.
    pub fn new(addr: usize, len: usize) -> Option<Self> {
        if len == 0 || !addr.is_multiple_of(PAGE_BYTES) || !len.is_multiple_of(PAGE_BYTES) {
            return None;
        }
        addr.checked_add(len)?;
        Some(Self { addr, len })
    }

    /// Address of the first byte.
    pub const fn addr(&self) -> usize {
        self.addr
    }

    /// Address after the last byte.
    pub const fn end(&self) -> usize {
        // Cannot overflow: `new` checked it.
        self.addr + self.len
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Length as an amount.
    pub const fn bytes(&self) -> Bytes {
        Bytes(self.len as u64)
    }

    /// Whether every byte of `other` is one of this range's.
    pub const fn covers(&self, other: &Self) -> bool {
        self.addr <= other.addr && other.end() <= self.end()
    }

    /// The part from byte `offset`, `len` bytes long, if it lies inside.
    pub fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        let part = Self::new(self.addr.checked_add(offset)?, len)?;
        self.covers(&part).then_some(part)
    }
}

impl fmt::Display for HostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.addr, self.end())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> GuestRange {
        GuestRange::from_bounds(Pfn(start), Pfn(end)).unwrap()
    }

    #[test]
    fn a_range_is_never_empty_and_ends_at_an_address() {
        assert_eq!(GuestRange::new(Pfn(1), Pages(0)), None);
        assert_eq!(GuestRange::new(Pfn(u64::MAX), Pages(1)), None);
        assert_eq!(GuestRange::new(Pfn(1), Pages(u64::MAX >> PAGE_SHIFT)), None);
        assert_eq!(GuestRange::from_bounds(Pfn(3), Pfn(2)), None);
    }

    #[test]
    fn partial_pages_at_the_edges_are_left_out() {
        let inside = |addr, len| GuestRange::inside_bytes(GuestAddress(addr), Bytes(len));
        assert_eq!(inside(0x1001, 0x2000), Some(range(2, 3)));
        assert_eq!(inside(0x1000, 0x2fff), Some(range(1, 3)));
        assert_eq!(inside(0x1001, 0x1ffe), None);
        assert_eq!(inside(u64::MAX - 10, 100), None);
    }

    #[test]
    fn blocks_of_a_range() {
        let ids = |r: GuestRange| r.whole_blocks().map(|b| b.0).collect::<Vec<_>>();
        assert_eq!(ids(range(511, 1536)), [1, 2]);
        assert_eq!(ids(range(1, 511)), [0; 0]);
        assert_eq!(range(511, 513).touched_blocks().map(|b| b.0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn host_ranges_are_whole_pages() {
        assert_eq!(HostRange::new(0x1000, 1), None);
        assert_eq!(HostRange::new(1, 0x1000), None);
        assert_eq!(HostRange::new(usize::MAX - 0xfff, 0x1000), None);
        let all = HostRange::new(0x1000, 0x3000).unwrap();
        assert_eq!(all.slice(0x1000, 0x2000), HostRange::new(0x2000, 0x2000));
        assert_eq!(all.slice(0x1000, 0x3000), None);
    }

    proptest! {
        #[test]
        fn intersection_is_what_both_contain(
            a in 0u64..2000, la in 1u64..2000, b in 0u64..2000, lb in 1u64..2000, p in 0u64..4000,
        ) {
            let (x, y) = (range(a, a + la), range(b, b + lb));
            let both = x.intersection(&y);
            prop_assert_eq!(both, y.intersection(&x));
            let inside = both.is_some_and(|r| r.contains(Pfn(p)));
            prop_assert_eq!(inside, x.contains(Pfn(p)) && y.contains(Pfn(p)));
        }
    }
}
