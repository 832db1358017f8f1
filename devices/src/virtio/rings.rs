// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rings of one queue (virtio 1.3, 2.7) by their addresses in this process.
//!
//! They are located once, when the driver starts the queue, so that an access costs a few instructions
//! and no lookup. The view is dropped with the queue, at the latest by the reset.
//!
//! Rules for the memory here: all of each ring lies in one region of guest RAM, checked by
//! [`Rings::locate`]; `view` keeps it mapped. The guest may write to it at any time, so every access is
//! one atomic load or store, and a value is used as it was loaded, never loaded again. Slots are
//! reduced to the size of the ring, which does not change.

use std::num::Wrapping;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use mm::guest_ram::GuestMemoryMmap;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::GuestAddress;

use super::ram_view::RamView;

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// Bytes before the entries of an available ring and of a used ring: flags and index.
const HEADER: usize = 4;

/// One entry of a descriptor table (2.7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingDescriptor {
    pub(super) addr: GuestAddress,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

/// A descriptor table: that of a queue, or an indirect one.
#[derive(Debug, Clone, Copy)]
pub(super) struct DescriptorTable {
    at: NonNull<u8>,
    pub(super) entries: u16,
}

impl DescriptorTable {
    /// The `entries` descriptors from `addr` on, if they are in guest RAM. The result must not be used
    /// for longer than `view` lives.
    pub(super) fn locate(view: &mut RamView, addr: GuestAddress, entries: u16) -> Option<Self> {
        let at = view.locate(addr, DESCRIPTOR * usize::from(entries))?;
        Some(Self { at, entries })
    }

    /// Entry `index`, if there is one.
    ///
    /// # Safety
    ///
    /// The view that located the table, or a clone of it, lives.
    pub(super) unsafe fn load(&self, index: u16) -> Option<RingDescriptor> {
        if index >= self.entries {
            return None;
        }
        // SAFETY: the table has more than `index` entries.
        let at = unsafe { self.at.add(DESCRIPTOR * usize::from(index)) };
        let [addr, rest] = if at.cast::<u64>().is_aligned() {
            // SAFETY: 16 bytes of guest memory, aligned and mapped, accessed by atomics only.
            let words = unsafe { at.cast::<[AtomicU64; 2]>().as_ref() };
            words.each_ref().map(|word| u64::from_le(word.load(Ordering::Relaxed)))
        } else {
            // The standard does not say how an indirect table is aligned.
            let mut bytes = [0; DESCRIPTOR];
            for (offset, byte) in bytes.iter_mut().enumerate() {
                // SAFETY: within the descriptor.
                let at = unsafe { at.add(offset) };
                // SAFETY: as above; a byte is always aligned.
                *byte = unsafe { at.read_volatile() };
            }
            let [addr, rest] =
                [0, 8].map(|from| bytes[from..from + 8].try_into().unwrap_or_default());
            [u64::from_le_bytes(addr), u64::from_le_bytes(rest)]
        };
        Some(RingDescriptor {
            addr: GuestAddress(addr),
            len: (rest & 0xffff_ffff) as u32,
            flags: (rest >> 32 & 0xffff) as u16,
            next: (rest >> 48) as u16,
        })
    }
}

/// All rings of a queue, and how far the device is.
#[derive(Debug)]
pub(super) struct Rings {
    view: RamView,
    table: DescriptorTable,
    available: NonNull<u8>,
    used: NonNull<u8>,
    /// Entries; a power of two.
    size: u16,
    event_idx: bool,
    next_available: Wrapping<u16>,
    next_used: Wrapping<u16>,
}

// SAFETY: the pointers are into memory that `view` keeps mapped, whichever thread has the value.
unsafe impl Send for Rings {}

impl Rings {
    /// Those of `queue`, if all are in guest RAM, aligned, each within one region.
    pub(super) fn locate(queue: &Queue, mem: Arc<GuestMemoryMmap>) -> Option<Self> {
        let size = queue.size();
        if !queue.ready() || !size.is_power_of_two() {
            return None;
        }
        let entries = usize::from(size);
        let mut view = RamView::new(mem);
        let table = DescriptorTable::locate(&mut view, GuestAddress(queue.desc_table()), size)?;
        // Behind the entries of each is the field of the other side's wishes (2.7.10).
        let mut ring = |addr, entry| view.locate(GuestAddress(addr), HEADER + entry * entries + 2);
        let available = ring(queue.avail_ring(), 2)?;
        let used = ring(queue.used_ring(), 8)?;
        (available.cast::<u16>().is_aligned() && used.cast::<u32>().is_aligned()).then_some(Self {
            view,
            table,
            available,
            used,
            size,
            event_idx: queue.event_idx_enabled(),
            next_available: Wrapping(queue.next_avail()),
            next_used: Wrapping(queue.next_used()),
        })
    }

    /// Guest memory, to walk a chain with.
    pub(super) fn view(&self) -> &RamView {
        &self.view
    }

    /// The descriptor table.
    pub(super) fn table(&self) -> DescriptorTable {
        self.table
    }

    /// The head of the next chain that the driver has made available.
    ///
    /// # Errors
    ///
    /// The ring's index is further ahead than the ring has entries, or the head is no descriptor.
    pub(super) fn pop(&mut self) -> Result<Option<u16>, Error> {
        let index = Wrapping(self.available_word(2).load(Ordering::Acquire).to_le());
        let waiting = (index - self.next_available).0;
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.size {
            return Err(Error::InvalidAvailRingIndex);
        }
        let slot = usize::from(self.next_available.0 % self.size);
        let head = self.available_word(HEADER + 2 * slot).load(Ordering::Relaxed).to_le();
        if head >= self.size {
            return Err(Error::InvalidDescriptorIndex);
        }
        self.next_available += 1;
        Ok(Some(head))
    }

    /// The head popped last will be popped again.
    pub(super) fn undo_pop(&mut self) {
        self.next_available -= 1;
    }

    /// Writes an element for each of `buffers`, its head and length, and then the index (2.7.8).
    ///
    /// # Errors
    ///
    /// A head is no descriptor.
    pub(super) fn push(&mut self, buffers: &[(u16, u32)]) -> Result<(), Error> {
        let mut next = self.next_used;
        for (head, written) in buffers {
            if *head >= self.size {
                return Err(Error::InvalidDescriptorIndex);
            }
            let slot = HEADER + 8 * usize::from(next.0 % self.size);
            self.used_word::<AtomicU32>(slot).store(u32::from(*head).to_le(), Ordering::Relaxed);
            self.used_word::<AtomicU32>(slot + 4).store(written.to_le(), Ordering::Relaxed);
            next += 1;
        }
        self.used_word::<AtomicU16>(2).store(next.0.to_le(), Ordering::Release);
        self.next_used = next;
        Ok(())
    }

    /// Whether the driver wants an interrupt for the last `count` buffers given back (2.7.7). The
    /// caller has a fence between these and the call.
    pub(super) fn wants_interrupt(&self, count: u16) -> bool {
        if !self.event_idx {
            let flags = self.available_word(0).load(Ordering::Relaxed).to_le();
            return flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0;
        }
        // The driver names the buffer behind which it wants one: is it among the last?
        let event = HEADER + 2 * usize::from(self.size);
        let event = Wrapping(self.available_word(event).load(Ordering::Relaxed).to_le());
        (self.next_used - event - Wrapping(1)).0 < count
    }

    /// Asks to be notified of the next buffer (2.7.10).
    pub(super) fn ask_for_notification(&self) {
        if self.event_idx {
            let event = HEADER + 8 * usize::from(self.size);
            let next = self.next_available.0.to_le();
            self.used_word::<AtomicU16>(event).store(next, Ordering::Relaxed);
        } else {
            self.used_word::<AtomicU16>(0).store(0, Ordering::Relaxed);
        }
    }

    /// Whether there are buffers to pop. The caller has a fence between
    /// [`ask_for_notification`](Self::ask_for_notification) and the call.
    pub(super) fn has_more(&self) -> bool {
        self.available_word(2).load(Ordering::Relaxed).to_le() != self.next_available.0
    }

    /// The word at `offset` of the available ring.
    fn available_word(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset.is_multiple_of(2) && offset < HEADER + 2 * usize::from(self.size) + 2);
        // SAFETY: `offset` is within the ring.
        let at = unsafe { self.available.add(offset) };
        // SAFETY: the ring is 2-aligned, as is `offset`, and mapped for as long as `self` lives; all
        // accesses to it are atomic.
        unsafe { at.cast::<AtomicU16>().as_ref() }
    }

    /// The word at `offset` of the used ring.
    fn used_word<T: RingWord>(&self, offset: usize) -> &T {
        debug_assert!(offset.is_multiple_of(size_of::<T>()));
        debug_assert!(offset + size_of::<T>() <= HEADER + 8 * usize::from(self.size) + 2);
        // SAFETY: the word is within the ring.
        let at = unsafe { self.used.add(offset) };
        // SAFETY: the ring is 4-aligned and `offset` a multiple of the word's size; otherwise as above.
        unsafe { at.cast::<T>().as_ref() }
    }
}

/// Words of a used ring.
trait RingWord {}
impl RingWord for AtomicU16 {}
impl RingWord for AtomicU32 {}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const SIZE: u16 = 4;
    const AVAILABLE: u64 = 0x100;
    const USED: u64 = 0x200;

    fn rings(next: u16) -> (Arc<GuestMemoryMmap>, Rings) {
        let mem = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(0x10)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_event_idx(true);
        queue.set_next_avail(next);
        queue.set_next_used(next);
        queue.set_ready(true);
        let rings = Rings::locate(&queue, Arc::clone(&mem)).unwrap();
        (mem, rings)
    }

    fn word(mem: &GuestMemoryMmap, at: u64) -> u16 {
        mem.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn indices_and_slots_wrap_around() {
        let (mem, mut rings) = rings(u16::MAX);
        // The slots 3 and 0, and an index behind both.
        mem.write_obj(2u16, GuestAddress(AVAILABLE + 4 + 2 * 3)).unwrap();
        mem.write_obj(1u16, GuestAddress(AVAILABLE + 4)).unwrap();
        mem.write_obj(1u16, GuestAddress(AVAILABLE + 2)).unwrap();
        assert_eq!(rings.pop().unwrap(), Some(2));
        assert!(rings.has_more());
        assert_eq!(rings.pop().unwrap(), Some(1));
        assert_eq!(rings.pop().unwrap(), None);
        rings.undo_pop();
        assert_eq!(rings.pop().unwrap(), Some(1));
        assert!(!rings.has_more());
        rings.ask_for_notification();
        assert_eq!(word(&mem, USED + 4 + 8 * u64::from(SIZE)), 1);

        rings.push(&[(2, 7), (1, 9)]).unwrap();
        assert_eq!(word(&mem, USED + 2), 1);
        let element =
            |slot: u64| mem.read_obj::<[u32; 2]>(GuestAddress(USED + 4 + 8 * slot)).unwrap();
        assert_eq!([element(3), element(0)], [[2, 7], [1, 9]]);
        // The driver wants an interrupt behind the first of the two, then behind none of them.
        mem.write_obj(u16::MAX, GuestAddress(AVAILABLE + 4 + 2 * u64::from(SIZE))).unwrap();
        assert!(rings.wants_interrupt(2) && !rings.wants_interrupt(1));
    }

    #[test]
    fn an_index_too_far_ahead_and_a_head_that_is_no_descriptor_are_errors() {
        let (mem, mut rings) = rings(0);
        mem.write_obj(SIZE + 1, GuestAddress(AVAILABLE + 2)).unwrap();
        assert!(matches!(rings.pop(), Err(Error::InvalidAvailRingIndex)));
        mem.write_obj(1u16, GuestAddress(AVAILABLE + 2)).unwrap();
        mem.write_obj(SIZE, GuestAddress(AVAILABLE + 4)).unwrap();
        assert!(matches!(rings.pop(), Err(Error::InvalidDescriptorIndex)));
        assert!(matches!(rings.push(&[(SIZE, 0)]), Err(Error::InvalidDescriptorIndex)));
        assert_eq!(word(&mem, USED + 2), 0, "no buffer was given back");
    }

    #[test]
    fn a_descriptor_is_the_same_at_any_alignment() {
        let (mem, rings) = rings(0);
        let mut view = rings.view().clone();
        for at in [0x400u64, 0x411, 0x42a] {
            mem.write_obj(0x1122_3344_5566_7788u64, GuestAddress(at)).unwrap();
            mem.write_obj(0x99aa_bbccu32, GuestAddress(at + 8)).unwrap();
            mem.write_obj(0x3_0002u32, GuestAddress(at + 12)).unwrap();
            let table = DescriptorTable::locate(&mut view, GuestAddress(at), 1).unwrap();
            // SAFETY: the view lives.
            let [first, none] = [0, 1].map(|index| unsafe { table.load(index) });
            let addr = GuestAddress(0x1122_3344_5566_7788);
            assert_eq!(first, Some(RingDescriptor { addr, len: 0x99aa_bbcc, flags: 2, next: 3 }));
            assert_eq!(none, None);
        }
        assert!(DescriptorTable::locate(&mut view, GuestAddress(0x1000 - 8), 1).is_none());
    }
}
