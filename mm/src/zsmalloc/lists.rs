// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lists of zspages that a class keeps, by fullness.

use crate::frames::sync::{SpinGuard, SpinLock};

use super::class::SizeClass;
use super::pool::ZsPool;
use super::zspage::{EMPTY, FULL, GROUPS, NONE, group_of};

/// Lists and counts of a class.
pub(super) struct ClassState {
    heads: [u32; GROUPS],
    pub(super) counts: [u32; GROUPS],
    /// A bit for each group that has a zspage.
    occupied: u16,
    pub(super) objects: u32,
    /// Free entries of the handle table.
    pub(super) handles: Vec<u32>,
}

impl ClassState {
    fn new() -> Self {
        Self {
            heads: [NONE; GROUPS],
            counts: [0; GROUPS],
            occupied: 0,
            objects: 0,
            handles: Vec::new(),
        }
    }

    pub(super) fn head(&self, group: usize) -> Option<u32> {
        (self.heads[group] != NONE).then_some(self.heads[group])
    }

    /// A zspage to take an object from: of the fullest, so that the others may become empty and
    /// go.
    #[inline]
    pub(super) fn fullest_with_room(&self) -> Option<u32> {
        let open = self.occupied & !(1 << FULL);
        if open == 0 {
            return None;
        }
        self.head(15 - open.leading_zeros() as usize)
    }

    pub(super) fn zspages(&self) -> u32 {
        self.counts.iter().sum()
    }
}
/// A class with its lock.
pub(super) struct ClassSlot {
    pub(super) shape: SizeClass,
    pub(super) state: SpinLock<ClassState>,
}

impl ClassSlot {
    pub(super) fn new(shape: SizeClass) -> Self {
        Self { shape, state: SpinLock::new(ClassState::new()) }
    }
}

impl ZsPool {
    /// The lock of a class, waiting or not.
    pub(super) fn lock_class(&self, class: usize, wait: bool) -> Option<SpinGuard<'_, ClassState>> {
        let state = &self.slots.get(class)?.state;
        if wait { Some(state.lock()) } else { state.try_lock() }
    }

    /// Sets the number of objects in use and moves the zspage to the group for it.
    #[inline]
    pub(super) fn count(&self, slot: &ClassSlot, state: &mut ClassState, number: u32, inuse: u16) {
        let zspage = self.zspage(number);
        zspage.set_inuse(inuse);
        let (old, group) = (usize::from(zspage.group()), group_of(inuse, slot.shape.objects));
        // One quarter off is good enough: relinking touches two neighbours, which are far away.
        let ends = |group| group == EMPTY || group == FULL;
        if old != group && (ends(old) || ends(group) || old.abs_diff(group) > 1) {
            self.unlink(state, number);
            self.insert(state, number, group);
        }
    }

    #[inline]
    pub(super) fn insert(&self, state: &mut ClassState, number: u32, group: usize) {
        let zspage = self.zspage(number);
        let head = state.heads[group];
        zspage.set_next(head);
        zspage.set_prev(NONE);
        // Six groups.
        #[allow(clippy::cast_possible_truncation)]
        zspage.set_group(group as u16);
        if head != NONE {
            self.zspage(head).set_prev(number);
        }
        state.heads[group] = number;
        state.counts[group] += 1;
        state.occupied |= 1 << group;
    }

    #[inline]
    pub(super) fn unlink(&self, state: &mut ClassState, number: u32) {
        let zspage = self.zspage(number);
        let (next, prev, group) = (zspage.next(), zspage.prev(), usize::from(zspage.group()));
        if next != NONE {
            self.zspage(next).set_prev(prev);
        }
        if prev == NONE {
            state.heads[group] = next;
        } else {
            self.zspage(prev).set_next(next);
        }
        state.counts[group] -= 1;
        if state.heads[group] == NONE {
            state.occupied &= !(1 << group);
        }
    }
}
