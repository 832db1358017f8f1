// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The layout of guest-physical memory.
//!
//! ```text
//! 0                3 GiB          4 GiB                                  align 1 GiB
//! ├── RAM ─────────┼── hole ──────┼── rest of RAM ──────────┤ ... ├── windows ──
//!          [CMA]   └ devices, APICs, firmware      [CMA]             shared memory of devices
//! ```
//!
//! The CMA region, where there is one, is the top of the highest region of RAM that can hold it,
//! away from the kernel image and from the 32-bit zones, which the guest needs for other purposes.

use vm_memory::GuestAddress;

use crate::units::{BLOCK_SIZE, Bytes, GuestRange, Pages};

/// Where RAM ends below 4 GiB, and the hole for devices begins.
pub const HOLE_START: GuestAddress = GuestAddress(3 << 30);
/// Where the hole ends, and the rest of RAM begins.
pub const HOLE_END: GuestAddress = GuestAddress(4 << 30);
/// Alignment of the windows above RAM, and of a large CMA region.
const GIB: u64 = 1 << 30;
/// Largest RAM: leaves room for windows below 2^46, which every 64-bit host can address.
const MAX_RAM: Bytes = Bytes(1 << 45);

/// Why memory of that size cannot be laid out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// A guest needs memory to boot.
    #[error("memory size is 0; give the guest at least 2 MiB")]
    Empty,
    /// RAM is made of whole blocks.
    #[error("memory size {0} is not a multiple of 2 MiB")]
    Unaligned(Bytes),
    /// More than the guest's physical address space holds.
    #[error("memory size {0} is above the limit of {MAX_RAM}")]
    TooLarge(Bytes),
    /// The CMA region must be blocks of RAM, in one piece, smaller than the RAM around it.
    #[error("CMA size {cma} does not fit: it must be a multiple of 2 MiB and below {limit}")]
    Cma {
        /// Size asked for.
        cma: Bytes,
        /// The longest region of RAM.
        limit: Bytes,
    },
}

/// Guest-physical memory: RAM, and the CMA region inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    ram: Vec<GuestRange>,
    cma: Option<GuestRange>,
}

impl MemoryLayout {
    /// Lays out `ram` bytes of RAM with a CMA region of `cma` bytes (zero for none).
    ///
    /// # Errors
    /// [`LayoutError`], if a size is not a multiple of 2 MiB or out of range.
    pub fn new(ram: Bytes, cma: Bytes) -> Result<Self, LayoutError> {
        if ram.0 == 0 {
            return Err(LayoutError::Empty);
        }
        if !ram.is_multiple_of(BLOCK_SIZE) {
            return Err(LayoutError::Unaligned(ram));
        }
        if ram > MAX_RAM {
            return Err(LayoutError::TooLarge(ram));
        }
        let low = ram.0.min(HOLE_START.0);
        let high = ram.0 - low;
        let stretches = [(GuestAddress(0), low), (HOLE_END, high)];
        let ram: Vec<_> = stretches
            .into_iter()
            .filter_map(|(addr, len)| GuestRange::from_bytes(addr, Bytes(len)))
            .collect();
        let cma = match cma {
            Bytes(0) => None,
            size => Some(place_cma(&ram, size)?),
        };
        Ok(Self { ram, cma })
    }

    /// The regions of RAM, in ascending order: one, or two around the hole.
    pub fn ram(&self) -> &[GuestRange] {
        &self.ram
    }

    /// All RAM together.
    pub fn ram_pages(&self) -> Pages {
        Pages(self.ram.iter().map(|r| r.pages().0).sum())
    }

    /// The CMA region.
    pub fn cma(&self) -> Option<GuestRange> {
        self.cma
    }

    /// First address above RAM and the hole, aligned to 1 GiB: device windows begin here.
    pub fn windows_start(&self) -> GuestAddress {
        let end = self.ram.last().map_or(0, |r| r.address().0 + r.bytes().0);
        // Cannot overflow: RAM ends below 2^46.
        GuestAddress(end.max(HOLE_END.0).next_multiple_of(GIB))
    }
}

/// This much RAM above a CMA region stays free. Before Linux reserves the region it takes
/// page tables from the top of RAM: hardly any with huge pages, a 512th of memory for a debugging
/// kernel that maps it by single pages (`DEBUG_PAGEALLOC`).
const TOP_MARGIN: u64 = 128;

fn place_cma(ram: &[GuestRange], size: Bytes) -> Result<GuestRange, LayoutError> {
    let limit = ram.iter().map(GuestRange::bytes).max().unwrap_or_default();
    let refused = LayoutError::Cma { cma: size, limit };
    if !size.is_multiple_of(BLOCK_SIZE) || size >= limit {
        return Err(refused);
    }
    let within = ram.iter().rev().find(|r| r.bytes() > size).ok_or(refused)?;
    let room = within.bytes().0 - size.0;
    let margin_blocks = (within.bytes().0 / TOP_MARGIN).div_ceil(BLOCK_SIZE);
    let above = margin_blocks.min(room / BLOCK_SIZE / 2) * BLOCK_SIZE;
    let top = within.address().0 + room - above;
    // A region of gigabytes can be backed by 1 GiB pages if it begins at a multiple of them.
    let aligned = top - top % GIB;
    let start = if size.0 >= GIB && aligned > within.address().0 { aligned } else { top };
    Ok(GuestRange::from_bytes(GuestAddress(start), size).expect("inside RAM, in blocks"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::PAGES_PER_BLOCK;

    fn mib(n: u64) -> Bytes {
        Bytes::from_mib(n).unwrap()
    }

    #[test]
    fn small_memory_is_one_region() {
        let layout = MemoryLayout::new(mib(128), Bytes(0)).unwrap();
        assert_eq!(layout.ram().len(), 1);
        assert_eq!(layout.windows_start(), HOLE_END);
    }

    #[test]
    fn five_gib_go_around_the_hole() {
        let layout = MemoryLayout::new(mib(5 << 10), Bytes(0)).unwrap();
        let bounds: Vec<_> = layout.ram().iter().map(|r| (r.address(), r.bytes())).collect();
        assert_eq!(bounds, [(GuestAddress(0), mib(3072)), (HOLE_END, mib(2048))]);
        assert_eq!(layout.windows_start(), GuestAddress(6 << 30));
    }

    #[test]
    fn rejects_sizes_that_do_not_fit() {
        let new = |ram, cma| MemoryLayout::new(ram, cma).unwrap_err();
        assert_eq!(new(Bytes(0), Bytes(0)), LayoutError::Empty);
        assert_eq!(new(Bytes(BLOCK_SIZE + 1), Bytes(0)), LayoutError::Unaligned(Bytes(0x20_0001)));
        let too_large = Bytes((1 << 45) + BLOCK_SIZE);
        assert_eq!(new(too_large, Bytes(0)), LayoutError::TooLarge(too_large));
        assert!(matches!(new(mib(128), mib(128)), LayoutError::Cma { .. }));
        assert!(matches!(new(mib(128), mib(3)), LayoutError::Cma { .. }));
    }

    proptest! {
        #[test]
        fn ram_adds_up_and_holds_the_cma_region(blocks in 1u64..20_000, cma in 0u64..20_000) {
            let size = Bytes(blocks * BLOCK_SIZE);
            let Ok(layout) = MemoryLayout::new(size, Bytes(cma * BLOCK_SIZE)) else {
                prop_assert!(cma > 0);
                return Ok(());
            };
            prop_assert_eq!(layout.ram_pages(), size.as_pages());
            for range in layout.ram() {
                prop_assert!(range.start().is_block_aligned());
                prop_assert!(range.end().0 << 12 <= HOLE_START.0 || range.address() >= HOLE_END);
            }
            match layout.cma() {
                None => prop_assert_eq!(cma, 0),
                Some(region) => {
                    prop_assert_eq!(region.bytes(), Bytes(cma * BLOCK_SIZE));
                    prop_assert!(region.start().is_block_aligned());
                    let above = layout.ram().last().unwrap().end().0 - region.end().0;
                    let crowded = blocks - cma < 2 || blocks > 1536;
                    prop_assert!(crowded || above >= PAGES_PER_BLOCK);
                    prop_assert!(layout.ram().iter().any(|r| r.covers(&region)));
                }
            }
        }
    }
}
