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
//! - `amount.rs`: [`Bytes`] and [`Pages`]
//! - `guest.rs`: [`Pfn`], [`BlockId`] and [`GuestRange`]
//! - `host.rs`: [`HostRange`]
//! - `number.rs`: plain numbers of one width in another
//!
//! Positions have no `+` or `-`: `checked_add` and its siblings state what happens on overflow.
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

mod amount;
mod guest;
mod host;
mod number;
#[cfg(test)]
mod tests;

pub use amount::{Bytes, Pages};
pub use guest::{BlockId, GuestRange, Pfn};
pub use host::HostRange;
pub use number::{SaturatingInto, usize_from};

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page: the unit of the guest's page tables and of the balloon.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of [`BLOCK_SIZE`].
pub const BLOCK_SHIFT: u32 = 21;
/// Bytes in a block: a huge page, one PMD entry, the unit in which memory is returned to the host.
pub const BLOCK_SIZE: u64 = 1 << BLOCK_SHIFT;
/// Pages in a block.
pub const PAGES_PER_BLOCK: u64 = 1 << (BLOCK_SHIFT - PAGE_SHIFT);

/// [`PAGE_SIZE`] as a length in this process.
pub const PAGE_BYTES: usize = PAGE_SIZE as usize;
/// [`BLOCK_SIZE`] as a length in this process.
pub const BLOCK_BYTES: usize = BLOCK_SIZE as usize;

const _: () = assert!(PAGES_PER_BLOCK == 512);
