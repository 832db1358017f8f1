// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lists of zspages that a class keeps, by fullness.

use super::class::SizeClass;
use super::zspage::{EMPTY, FULL, GROUPS, NONE, group_of};
use super::zspages::Zspages;
use crate::frames::sync::{SpinGuard, SpinLock};

/// Lists and counts of a class.
pub(super) struct ClassState {
    heads: [u32; GROUPS],
    counts: [u32; GROUPS],
    /// A bit for each group that has a zspage.
    occupied: u16,
    objects: u32,
    /// Free entries of the handle table.
    handles: Vec<u32>,
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

    /// A zspage to take an object from: of the fullest, so that the others may become empty
    /// and be freed.
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

    /// Zspages by fullness group.
    pub(super) fn counts(&self) -> [u32; GROUPS] {
        self.counts
    }

    /// Objects in use.
    pub(super) fn objects(&self) -> u32 {
        self.objects
    }

    /// Zspages that the objects in use would fill, if packed.
    pub(super) fn needed(&self, shape: &SizeClass) -> usize {
        (self.objects as usize).div_ceil(shape.objects)
    }

    /// Free entries of the handle table that the class keeps.
    pub(super) fn handles(&mut self) -> &mut Vec<u32> {
        &mut self.handles
    }

    /// Bytes of the list of free entries.
    pub(super) fn handle_bytes(&self) -> usize {
        self.handles.capacity() * size_of::<u32>()
    }

    /// An object of zspage `number` was allocated.
    #[inline]
    pub(super) fn add_object(&mut self, zspages: &Zspages, shape: &SizeClass, number: u32) {
        self.objects += 1;
        self.count(zspages, shape, number, zspages.at(number).inuse() + 1);
    }

    /// An object of zspage `number` was freed; `true` if the zspage is empty and should go.
    #[inline]
    pub(super) fn sub_object(&mut self, zspages: &Zspages, shape: &SizeClass, number: u32) -> bool {
        self.objects -= 1;
        let inuse = zspages.at(number).inuse() - 1;
        self.count(zspages, shape, number, inuse);
        // One empty zspage per class is kept: a program that frees one object and allocates the
        // next should not build a chain each time.
        inuse == 0 && self.counts[EMPTY] > 1
    }

    /// Sets the number of objects in use and moves the zspage to the group for it.
    #[inline]
    pub(super) fn count(&mut self, zspages: &Zspages, shape: &SizeClass, number: u32, inuse: u16) {
        let zspage = zspages.at(number);
        zspage.set_inuse(inuse);
        let (old, group) = (usize::from(zspage.group()), group_of(inuse, shape.objects));
        // A hint that is one quarter off is good enough: relinking accesses two distant neighbours.
        let ends = |group| group == EMPTY || group == FULL;
        if old != group && (ends(old) || ends(group) || old.abs_diff(group) > 1) {
            self.unlink(zspages, number);
            self.insert(zspages, number, group);
        }
    }

    #[inline]
    pub(super) fn insert(&mut self, zspages: &Zspages, number: u32, group: usize) {
        let zspage = zspages.at(number);
        let head = self.heads[group];
        zspage.set_next(head);
        zspage.set_prev(NONE);
        // Six groups.
        zspage.set_group(group as u16);
        if head != NONE {
            zspages.at(head).set_prev(number);
        }
        self.heads[group] = number;
        self.counts[group] += 1;
        self.occupied |= 1 << group;
    }

    #[inline]
    pub(super) fn unlink(&mut self, zspages: &Zspages, number: u32) {
        let zspage = zspages.at(number);
        let (next, prev, group) = (zspage.next(), zspage.prev(), usize::from(zspage.group()));
        if next != NONE {
            zspages.at(next).set_prev(prev);
        }
        if prev == NONE {
            self.heads[group] = next;
        } else {
            zspages.at(prev).set_next(next);
        }
        self.counts[group] -= 1;
        if self.heads[group] == NONE {
            self.occupied &= !(1 << group);
        }
    }
}

/// A class with its lock.
pub(super) struct Class {
    shape: SizeClass,
    state: SpinLock<ClassState>,
}

impl Class {
    pub(super) fn new(shape: SizeClass) -> Self {
        Self { shape, state: SpinLock::new(ClassState::new()) }
    }

    #[inline]
    pub(super) fn shape(&self) -> &SizeClass {
        &self.shape
    }

    #[inline]
    pub(super) fn lock(&self) -> SpinGuard<'_, ClassState> {
        self.state.lock()
    }

    pub(super) fn try_lock(&self) -> Option<SpinGuard<'_, ClassState>> {
        self.state.try_lock()
    }
}
