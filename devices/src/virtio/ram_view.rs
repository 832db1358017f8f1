// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where guest memory is in this process, for paths on which each lookup counts.

use std::ptr::NonNull;
use std::sync::Arc;

use mm::guest_ram::GuestMemoryMmap;
use mm::units::{SaturatingInto, usize_from};
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

/// Guest memory, with the region that was found last: a guest has two at most, and its buffers are
/// mostly in one of them.
///
/// Addresses that it returns are valid for as long as the memory is mapped, which `mem` ensures. The
/// guest may change the contents at any time, so they must never become a Rust reference other than
/// to an atomic.
#[derive(Debug, Clone)]
pub(super) struct RamView {
    mem: Arc<GuestMemoryMmap>,
    /// The region: its first guest-physical address, its length in bytes, its address here.
    start: u64,
    len: u64,
    base: NonNull<u8>,
}

// SAFETY: the pointer is into memory that `mem` keeps mapped, whichever thread has the value.
unsafe impl Send for RamView {}

impl RamView {
    /// A view of `mem`.
    pub(super) fn new(mem: Arc<GuestMemoryMmap>) -> Self {
        // No address is in a region of no bytes.
        Self { mem, start: 0, len: 0, base: NonNull::dangling() }
    }

    /// The memory.
    pub(super) fn mem(&self) -> &Arc<GuestMemoryMmap> {
        &self.mem
    }

    /// Where the `len` bytes from `addr` on are, if they lie in one region.
    pub(super) fn locate(&mut self, addr: GuestAddress, len: usize) -> Option<NonNull<u8>> {
        self.locate_part(addr, len).filter(|(_, part)| *part == len).map(|(at, _)| at)
    }

    /// Where `addr` is, and how many of the `len` bytes from there on, at least one unless `len` is 0,
    /// lie in the same region. `None` if it is not RAM.
    pub(super) fn locate_part(
        &mut self,
        addr: GuestAddress,
        len: usize,
    ) -> Option<(NonNull<u8>, usize)> {
        let offset = match addr.0.wrapping_sub(self.start) {
            offset if offset < self.len => offset,
            _ => self.find(addr)?,
        };
        let part = len.min(usize_from(self.len - offset));
        // SAFETY: the region has `len` bytes from `base` on, and `offset` is less.
        Some((unsafe { self.base.add(usize_from(offset)) }, part))
    }

    /// Makes the region of `addr` the present one; returns the offset in it.
    #[cold]
    fn find(&mut self, addr: GuestAddress) -> Option<u64> {
        let region = self.mem.find_region(addr)?;
        let bytes = region.as_volatile_slice().ok()?;
        self.base = NonNull::new(bytes.ptr_guard_mut().as_ptr())?;
        self.start = region.start_addr().0;
        self.len = bytes.len().saturating_u64();
        let offset = addr.0.checked_sub(self.start)?;
        (offset < self.len).then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;

    proptest! {
        /// In any order of lookups, each address is where vm-memory has it, and none is invented.
        #[test]
        fn finds_what_guest_memory_has(lookups in prop::collection::vec((0u64..0x9000, 0usize..0x3000), 1..50)) {
            // Two regions that touch, a hole, and a third.
            let ranges =
                [(GuestAddress(0x1000), 0x2000), (GuestAddress(0x3000), 0x1000), (GuestAddress(0x6000), 0x1000)];
            let mem = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
            let mut view = RamView::new(Arc::clone(&mem));
            for (addr, len) in lookups {
                let inside = ranges.iter().find(|(start, size)| {
                    (start.0..start.0 + *size as u64).contains(&addr)
                });
                let expected = inside.map(|(start, size)| len.min((start.0 + *size as u64 - addr) as usize));
                let found = view.locate_part(GuestAddress(addr), len);
                prop_assert_eq!(found.map(|(_, part)| part), expected);
                prop_assert_eq!(view.locate(GuestAddress(addr), len).is_some(), expected == Some(len));
                if let Some((at, _)) = found {
                    mem.write_obj(addr, GuestAddress(addr)).ok();
                    mem.write_obj(0x5au8, GuestAddress(addr)).unwrap();
                    // SAFETY: one byte of `mem`, which lives; no one else accesses it.
                    prop_assert_eq!(unsafe { at.read_volatile() }, 0x5a);
                }
            }
        }
    }
}
