// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects of the zspages of one class: allocated, marked and freed. The caller holds the class
//! lock.

use super::bytes::{Headers, ObjectHeader};
use super::class::SizeClass;
use super::zspage::{NO_INDEX, Zspage};
use crate::frames::Region;

/// The objects of one class.
pub(super) struct Objects<'a> {
    shape: &'a SizeClass,
    headers: Headers<'a>,
}

impl<'a> Objects<'a> {
    /// Made only under the class lock.
    #[inline]
    pub(super) fn new(region: &'a Region, shape: &'a SizeClass) -> Self {
        Self { shape, headers: Headers { region, class: shape } }
    }

    /// Takes a free object off a zspage with room.
    #[inline]
    pub(super) fn pop_free(&self, zspage: &Zspage) -> u16 {
        let object = zspage.free();
        if object == NO_INDEX {
            let fresh = zspage.fresh();
            zspage.set_fresh(fresh + 1);
            return fresh;
        }
        zspage.set_free(self.headers.read(zspage, object).next());
        object
    }

    /// Puts an object on its zspage's free list.
    #[inline]
    pub(super) fn push_free(&self, zspage: &Zspage, object: u16) {
        if self.shape.is_huge() {
            zspage.set_fresh(0);
            return;
        }
        self.headers.write(zspage, object, ObjectHeader::free(zspage.free()));
        zspage.set_free(object);
    }

    /// Notes the handle of an object in use.
    #[inline]
    pub(super) fn set_handle(&self, zspage: &Zspage, object: u16, handle: u32) {
        if self.shape.is_huge() {
            zspage.set_huge(handle);
        } else {
            self.headers.write(zspage, object, ObjectHeader::used(handle));
        }
    }

    /// The handle of an object; `None` if it is free.
    pub(super) fn handle_of(&self, zspage: &Zspage, object: u16) -> Option<u32> {
        if self.shape.is_huge() {
            return (zspage.inuse() == 1).then(|| zspage.huge());
        }
        if object >= zspage.fresh() {
            return None;
        }
        self.headers.read(zspage, object).handle()
    }
}
