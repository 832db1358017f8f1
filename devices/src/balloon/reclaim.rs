// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the balloon needs of the memory behind it.

use std::sync::Arc;

use mm::guest_ram::{GuestRam, GuestRamError};
use mm::units::{Bytes, GuestRange, PAGES_PER_BLOCK, Pages};

/// Result of giving memory back: bytes asked for, and bytes verified free.
pub use mm::backing::Discarded;

/// Guest RAM as the balloon sees it: where it is, and how to give it back.
///
/// The balloon decides *when* a page is given back; what that takes on this host (splitting a huge
/// page, punching a hole in a file) is the implementor's business.
pub trait MemoryReclaim: Send {
    /// All RAM, in ascending order. Constant.
    fn ram(&self) -> Vec<GuestRange>;

    /// Gives `ranges` (ascending, disjoint, all RAM) back to the host. They read as zero from then
    /// on.
    ///
    /// # Errors
    ///
    /// What the kernel refuses; some of the ranges may have been given back.
    fn discard(&mut self, ranges: &[GuestRange]) -> Result<Discarded, GuestRamError>;

    /// Says whether the host may use huge pages in `range`, whole blocks of RAM.
    ///
    /// In a block with some pages in the balloon a huge page would take them all back.
    ///
    /// # Errors
    ///
    /// What the kernel refuses, such as one mapping more than a process may have.
    fn allow_huge(&mut self, range: GuestRange, allow: bool) -> Result<(), GuestRamError>;

    /// The smallest aligned piece that goes back to the host by itself, a whole number of blocks
    /// where it is more than a block. Constant.
    fn unit(&self) -> Pages {
        Pages(PAGES_PER_BLOCK)
    }

    /// Whether the host finds memory for any discarded page that the guest touches. Where it may
    /// not, pages go back only if the guest asks before it uses them, and [`restore`](Self::restore)
    /// answers. Constant.
    fn refills(&self) -> bool {
        true
    }

    /// Makes sure that the guest can use `range`, all RAM, from now on; contents of pages that are
    /// not discarded stay. Returns how much was allocated for that.
    ///
    /// # Errors
    ///
    /// [`GuestRamError::is_out_of_memory`] if the host has no memory of this kind at the moment.
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
