// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pool's zspages by number, and which numbers are free.

use std::sync::{Mutex, PoisonError};

use super::table::Table;
use super::zspage::{NO_INDEX, Zspage};

/// All zspages of a pool.
pub(super) struct Zspages {
    table: Table<Zspage>,
    free: Mutex<Vec<u32>>,
}

impl Zspages {
    pub(super) fn new(most: usize) -> Self {
        Self { table: Table::new(most, Zspage::new), free: Mutex::default() }
    }

    /// A zspage by a number that was given out.
    #[inline]
    pub(super) fn at(&self, number: u32) -> &Zspage {
        self.table.get(number).expect("a zspage that was given out")
    }

    /// Like [`at`](Self::at), for a number from outside.
    pub(super) fn get(&self, number: u32) -> Option<&Zspage> {
        self.table.get(number)
    }

    /// A number for a new zspage; `None` if there are as many as there can be.
    pub(super) fn take(&self) -> Option<u32> {
        let number = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        number.or_else(|| self.table.grow(1).map(|new| new.start))
    }

    /// Gives the number of a closed zspage back.
    pub(super) fn put(&self, number: u32) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(number);
    }

    /// Every zspage that has frames.
    pub(super) fn open(&self) -> impl Iterator<Item = &Zspage> {
        let all = (0..self.table.len()).filter_map(|number| self.table.get(number));
        all.filter(|zspage| zspage.class() != NO_INDEX)
    }

    /// Bytes of the table.
    pub(super) fn bytes(&self) -> usize {
        self.table.bytes()
    }
}
