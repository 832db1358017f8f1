// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A chain of descriptors as the driver wrote it (virtio 1.3, 2.7.5), walked but not checked.

use std::sync::Arc;

use mm::guest_ram::GuestMemoryMmap;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::GuestAddress;

use super::ram_view::RamView;
use super::rings::{DescriptorTable, RingDescriptor, Rings};

/// One buffer of the driver's, as a chain of descriptors.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    view: RamView,
    table: DescriptorTable,
    indirect: bool,
    /// The next descriptor, if there is one.
    next: Option<u16>,
    /// How many more there may be: as many as the table has.
    left: u16,
    /// Bytes in all so far.
    len: u32,
}

// SAFETY: the table is in memory that `view` keeps mapped, whichever thread has the value.
unsafe impl Send for Chain {}

/// What one descriptor of a chain says, other than those that name a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChainPart {
    pub(super) addr: GuestAddress,
    pub(super) len: u32,
    pub(super) writable: bool,
    pub(super) has_next: bool,
}

impl Chain {
    /// The one of `rings` that begins with descriptor `head`.
    pub(super) fn new(rings: &Rings, head: u16) -> Self {
        let (view, table) = (rings.view().clone(), rings.table());
        Self { head, view, table, indirect: false, next: Some(head), left: table.entries, len: 0 }
    }

    /// Its first descriptor, by which it is given back.
    pub fn head_index(&self) -> u16 {
        self.head
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        self.view.mem()
    }

    /// Guest RAM, to look up what the descriptors name.
    pub(super) fn view(&mut self) -> &mut RamView {
        &mut self.view
    }

    /// Goes on in the table that `descriptor` names, unless it is invalid (2.7.5.3).
    fn enter(&mut self, descriptor: RingDescriptor) -> Option<()> {
        if self.indirect || !descriptor.len.is_multiple_of(16) {
            return None;
        }
        let entries = u16::try_from(descriptor.len / 16).ok()?;
        self.table = DescriptorTable::locate(&mut self.view, descriptor.addr, entries)?;
        self.indirect = true;
        self.next = Some(0);
        self.left = entries;
        Some(())
    }

    /// The next descriptor. Ends early where a table is invalid or shorter than the chain, or where
    /// the chain names 2^32 bytes (2.7.5.2).
    pub(super) fn next_part(&mut self) -> Option<ChainPart> {
        loop {
            let index = self.next.take()?;
            self.left = self.left.checked_sub(1)?;
            // SAFETY: `view` located the table, or is a clone of the view that did.
            let descriptor = unsafe { self.table.load(index) }?;
            let flags = u32::from(descriptor.flags);
            if flags & VRING_DESC_F_INDIRECT != 0 {
                self.enter(descriptor)?;
                continue;
            }
            self.len = self.len.checked_add(descriptor.len)?;
            let has_next = flags & VRING_DESC_F_NEXT != 0;
            self.next = has_next.then_some(descriptor.next);
            let RingDescriptor { addr, len, .. } = descriptor;
            let writable = flags & VRING_DESC_F_WRITE != 0;
            return Some(ChainPart { addr, len, writable, has_next });
        }
    }
}
