// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compaction of a class: objects of its emptiest zspages move into its fullest, until what is
//! left could not be held by fewer zspages.

use std::sync::atomic::Ordering;

use crate::frames::Shrink;

use super::bytes::Span;
use super::chain::Emptied;
use super::handle::Place;
use super::lists::{ClassSlot, ClassState};
use super::pool::ZsPool;
use super::zspage::{EMPTY, FULL};

impl Shrink for ZsPool {
    fn shrink(&self, frames: u64) -> u64 {
        ZsPool::shrink(self, frames)
    }
}

impl ZsPool {
    /// Moves objects together and gives back the frames of zspages that this empties, and of
    /// empty ones kept in reserve. Returns how many frames. Objects that are mapped stay.
    pub fn compact(&self) -> u64 {
        let freed = self.slots.iter().map(|slot| self.compact_class(slot)).sum();
        self.compacted.fetch_add(freed, Ordering::Relaxed);
        freed
    }

    /// Frames that [`compact`](Self::compact) could give back, at most.
    #[must_use]
    pub fn compactable(&self) -> u64 {
        let of = |slot: &ClassSlot| {
            let state = slot.state.lock();
            let needed = (state.objects as usize).div_ceil(slot.shape.objects);
            (state.zspages() as usize - needed) * slot.shape.frames
        };
        self.slots.iter().map(|slot| of(slot) as u64).sum()
    }

    /// Like [`compact`](Self::compact), but stops once `frames` frames were given back: what the
    /// frame pool asks for when too little is free.
    pub fn shrink(&self, frames: u64) -> u64 {
        let mut freed = 0;
        for slot in &self.slots {
            if freed >= frames {
                break;
            }
            freed += self.compact_class(slot);
        }
        self.compacted.fetch_add(freed, Ordering::Relaxed);
        freed
    }

    fn compact_class(&self, slot: &ClassSlot) -> u64 {
        let mut freed = 0;
        // The lock is let go after each zspage: others wait for a few dozen copies at most.
        loop {
            let mut state = slot.state.lock();
            if let Some(empty) = state.head(EMPTY) {
                let emptied = self.detach(&mut state, empty);
                drop(state);
                freed += self.free_frames(emptied);
                continue;
            }
            let needed = (state.objects as usize).div_ceil(slot.shape.objects);
            if state.zspages() as usize <= needed {
                return freed;
            }
            let emptied = self.empty_one(slot, &mut state);
            drop(state);
            match emptied {
                Some(emptied) => freed += self.free_frames(emptied),
                None => return freed,
            }
        }
    }

    /// Moves all objects out of the emptiest zspage that is not in use. `None` if there is none,
    /// or no room for its objects.
    fn empty_one(&self, slot: &ClassSlot, state: &mut ClassState) -> Option<Emptied> {
        let mut group = EMPTY + 1;
        let mut at = None;
        loop {
            at = match at {
                None if group < FULL => state.head(group),
                None => return None,
                Some(number) => {
                    Some(self.zspage(number).next()).filter(|&n| n != super::zspage::NONE)
                }
            };
            let Some(source) = at else {
                group += 1;
                continue;
            };
            let zspage = self.zspage(source);
            // Nobody maps an object of it, and nobody can until this is given back.
            if !zspage.lock.try_write() {
                continue;
            }
            // Off its list, so that it is not its own destination.
            self.unlink(state, source);
            let done = self.move_all(slot, state, source);
            zspage.lock.unwrite();
            self.insert(state, source, usize::from(zspage.group()));
            self.count(slot, state, source, zspage.inuse());
            return done.then(|| self.detach(state, source));
        }
    }

    /// Moves the objects of a locked zspage elsewhere; `true` if none is left.
    fn move_all(&self, slot: &ClassSlot, state: &mut ClassState, source: u32) -> bool {
        let zspage = self.zspage(source);
        for object in 0..u16::try_from(slot.shape.objects).unwrap_or(0) {
            let Some(handle) = self.header_of(slot, zspage, object) else { continue };
            let Some(target) = (EMPTY + 1..FULL).rev().find_map(|group| state.head(group)) else {
                return false;
            };
            let Some(entry) = self.entries.get(handle) else { continue };
            // Somebody has the object and waits to map or free it.
            if !matches!(entry.try_lock(None), Ok(Some(_))) {
                continue;
            }
            let into = self.zspage(target);
            debug_assert!(into.has_room(&slot.shape));
            let free = self.pop_free(slot, into);
            let region = self.frames.region();
            let from = Span::new(region, &slot.shape, zspage, object);
            let mut to = Span::new(region, &slot.shape, into, free);
            // SAFETY: the source's handle bit and its zspage's write lock are held; the target
            // object is free, and the class lock keeps others from taking it.
            unsafe { to.copy_from(&from) };
            self.set_header(slot, into, free, handle);
            self.count(slot, state, target, into.inuse() + 1);
            entry.relocate(Place { zspage: target, object: free });
            self.push_free(slot, zspage, object);
            zspage.set_inuse(zspage.inuse() - 1);
        }
        zspage.inuse() == 0
    }
}
