// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the balloon needs of the memory behind it.

use std::sync::Arc;

use mm::guest_ram::{GuestRam, GuestRamError};
use mm::units::GuestRange;

/// What giving memory back came to: bytes asked for, and bytes verified free.
pub use mm::backing::Discarded;

/// Guest RAM as the balloon sees it: what there is of it, and how to give it back.
///
/// The balloon decides *when* a page is given back; what that takes on this host (splitting a huge
/// page, punching a hole in a file) is the implementor's business.
pub trait MemoryReclaim: Send {
    /// All RAM, in ascending order. Constant.
    fn ram(&self) -> Vec<GuestRange>;

    /// Gives `ranges` (ascending, disjoint, all RAM) back to the host. They read as zero from then
    /// on.
    fn discard(&mut self, ranges: &[GuestRange]) -> Result<Discarded, GuestRamError>;

    /// Says whether the host may use huge pages in `range`, whole blocks of RAM.
    ///
    /// In a block with some pages in the balloon a huge page would take them all back.
    fn allow_huge(&mut self, range: GuestRange, allow: bool) -> Result<(), GuestRamError>;
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
}
