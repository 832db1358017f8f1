// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the balloon needs from the memory behind it.

use std::sync::Arc;

use mm::guest_ram::{GuestRam, GuestRamError};
use mm::units::{Bytes, GuestRange, PAGES_PER_BLOCK, Pages};

/// Result of giving memory back: bytes asked for, and bytes verified free.
pub use mm::backing::Discarded;

/// Guest RAM as seen by the balloon: its location, and how to discard it.
///
/// The balloon decides *when* a page is discarded; the implementor decides how (splitting a huge
/// page, punching a hole in a file).
pub trait MemoryReclaim: Send {
    /// All RAM, in ascending order. Constant.
    fn ram(&self) -> Vec<GuestRange>;

    /// Discards `ranges` (ascending, disjoint, all RAM) on the host. They read as zero afterwards.
    ///
    /// # Errors
    ///
    /// The kernel's error; some of the ranges may have been discarded.
    fn discard(&mut self, ranges: &[GuestRange]) -> Result<Discarded, GuestRamError>;

    /// Allows or forbids huge pages in `range`, whole blocks of RAM.
    ///
    /// In a block with ballooned pages, a huge page would fill the holes again.
    ///
    /// # Errors
    ///
    /// The kernel's error, for example too many mappings.
    fn allow_huge(&mut self, range: GuestRange, allow: bool) -> Result<(), GuestRamError>;

    /// The smallest aligned unit that can be discarded, a whole number of blocks if larger than a
    /// block. Constant.
    fn unit(&self) -> Pages {
        Pages(PAGES_PER_BLOCK)
    }

    /// Whether the host always finds memory when the guest accesses a discarded page. If not, pages
    /// are discarded only if the guest asks before it uses them again, and
    /// [`restore`](Self::restore) serves that request. Constant.
    fn refills(&self) -> bool {
        true
    }

    /// Makes `range`, all RAM, usable by the guest from now on; contents of pages that are not
    /// discarded are kept. Returns the bytes allocated.
    ///
    /// # Errors
    ///
    /// [`GuestRamError::is_out_of_memory`] if the host has no memory of this kind now.
    fn restore(&mut self, _range: GuestRange) -> Result<Bytes, GuestRamError> {
        Ok(Bytes(0))
    }
}

impl MemoryReclaim for Arc<GuestRam> {
    fn ram(&self) -> Vec<GuestRange> {
        self.regions().iter().map(|region| region.guest()).collect()
    }

    fn discard(&mut self, ranges: &[GuestRange]) -> Result<Discarded, GuestRamError> {
        GuestRam::discard(self, ranges)
    }

    fn allow_huge(&mut self, range: GuestRange, allow: bool) -> Result<(), GuestRamError> {
        GuestRam::allow_huge(self, range, allow)
    }

    fn unit(&self) -> Pages {
        self.discard_unit()
    }

    fn refills(&self) -> bool {
        GuestRam::refills(self)
    }

    fn restore(&mut self, range: GuestRange) -> Result<Bytes, GuestRamError> {
        GuestRam::restore(self, range)
    }
}
