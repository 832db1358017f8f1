// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects of a zspage: taken, marked, and put back, with the entries of their handles.

use std::sync::PoisonError;

use super::bytes::{Header, Headers};
use super::chain::Emptied;
use super::handle::{Handle, Place};
use super::lists::{ClassSlot, ClassState};
use super::pool::ZsPool;
use super::zspage::{EMPTY, NO_INDEX, Zspage};

/// Entries taken from the table, or left for other classes, at a time.
const HANDLE_BATCH: u32 = 64;
/// Free entries that a class keeps, at most.
pub(super) const MOST_KEPT: usize = 4 * HANDLE_BATCH as usize;

impl ZsPool {
    fn headers<'a>(&'a self, slot: &'a ClassSlot) -> Headers<'a> {
        Headers { region: self.frames.region(), class: &slot.shape }
    }

    #[inline]
    pub(super) fn take_handle(&self, state: &mut ClassState) -> Option<u32> {
        state.handles.pop().or_else(|| self.find_handles(state))
    }

    #[cold]
    fn find_handles(&self, state: &mut ClassState) -> Option<u32> {
        {
            let mut shared = self.free_handles.lock().unwrap_or_else(PoisonError::into_inner);
            let from = shared.len().saturating_sub(HANDLE_BATCH as usize);
            state.handles.extend(shared.drain(from..));
        }
        if state.handles.is_empty() {
            // Lowest last, so that it goes first.
            state.handles.extend(self.entries.grow(HANDLE_BATCH)?.rev());
        }
        state.handles.pop()
    }

    #[inline]
    pub(super) fn put_handle(&self, state: &mut ClassState, handle: u32) {
        state.handles.push(handle);
        if state.handles.len() > MOST_KEPT {
            self.leave_handles(state);
        }
    }

    #[cold]
    fn leave_handles(&self, state: &mut ClassState) {
        let mut shared = self.free_handles.lock().unwrap_or_else(PoisonError::into_inner);
        shared.extend(state.handles.drain(..2 * HANDLE_BATCH as usize));
    }

    #[inline]
    pub(super) fn take_object(
        &self,
        slot: &ClassSlot,
        state: &mut ClassState,
        number: u32,
        handle: u32,
    ) -> Handle {
        let zspage = self.zspage(number);
        let object = self.pop_free(slot, zspage);
        self.set_header(slot, zspage, object, handle);
        state.objects += 1;
        self.count(slot, state, number, zspage.inuse() + 1);
        let place = Place { zspage: number, object };
        let entry = self.entries.get(handle).expect("an entry that was given out");
        Handle { index: handle, generation: entry.publish(place), pool: self.tag }
    }

    /// Takes a free object off a zspage with room.
    #[inline]
    pub(super) fn pop_free(&self, slot: &ClassSlot, zspage: &Zspage) -> u16 {
        let object = zspage.free();
        if object == NO_INDEX {
            let fresh = zspage.fresh();
            zspage.set_fresh(fresh + 1);
            return fresh;
        }
        zspage.set_free(self.headers(slot).read(zspage, object).next());
        object
    }

    #[inline]
    pub(super) fn set_header(&self, slot: &ClassSlot, zspage: &Zspage, object: u16, handle: u32) {
        if slot.shape.is_huge() {
            zspage.set_huge(handle);
        } else {
            self.headers(slot).write(zspage, object, Header::used(handle));
        }
    }

    /// The handle of an object in use.
    pub(super) fn header_of(&self, slot: &ClassSlot, zspage: &Zspage, object: u16) -> Option<u32> {
        if slot.shape.is_huge() {
            return (zspage.inuse() == 1).then(|| zspage.huge());
        }
        if object >= zspage.fresh() {
            return None;
        }
        self.headers(slot).read(zspage, object).handle()
    }

    /// Puts an object on its zspage's free list.
    #[inline]
    pub(super) fn push_free(&self, slot: &ClassSlot, zspage: &Zspage, object: u16) {
        if slot.shape.is_huge() {
            zspage.set_fresh(0);
            return;
        }
        self.headers(slot).write(zspage, object, Header::free(zspage.free()));
        zspage.set_free(object);
    }

    /// Frees an object; returns the frames of its zspage if that is to go.
    #[inline]
    pub(super) fn put_object(
        &self,
        slot: &ClassSlot,
        state: &mut ClassState,
        place: Place,
    ) -> Option<Emptied> {
        let zspage = self.zspage(place.zspage);
        self.push_free(slot, zspage, place.object);
        state.objects -= 1;
        let inuse = zspage.inuse() - 1;
        self.count(slot, state, place.zspage, inuse);
        // One empty zspage a class is kept: a program that frees one object and allocates the
        // next should not build a chain each time.
        (inuse == 0 && state.counts[EMPTY] > 1).then(|| self.detach(state, place.zspage))
    }
}
