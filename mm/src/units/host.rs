// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ranges of this process's address space.

use std::fmt;
use std::ops::Range;

use super::{Bytes, PAGE_BYTES};

/// A run of bytes in this process's address space, whole pages of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostRange {
    addr: usize,
    len: usize,
}

impl HostRange {
    /// `len` bytes from `addr`; `None` unless both are multiples of the page size, `len` is not
    /// zero, and the end is an address.
    pub fn new(addr: usize, len: usize) -> Option<Self> {
        if len == 0 || !addr.is_multiple_of(PAGE_BYTES) || !len.is_multiple_of(PAGE_BYTES) {
            return None;
        }
        addr.checked_add(len)?;
        Some(Self { addr, len })
    }

    /// Address of the first byte.
    pub const fn addr(&self) -> usize {
        self.addr
    }

    /// Address after the last byte.
    pub const fn end(&self) -> usize {
        // Cannot overflow: `new` checked it.
        self.addr + self.len
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Length as an amount.
    pub const fn bytes(&self) -> Bytes {
        Bytes(self.len as u64)
    }

    /// The first page of it.
    #[must_use]
    pub const fn first_page(&self) -> Self {
        Self { addr: self.addr, len: PAGE_BYTES }
    }

    /// Whether every byte of `other` is one of this range's.
    pub const fn covers(&self, other: &Self) -> bool {
        self.addr <= other.addr && other.end() <= self.end()
    }

    /// The part from byte `offset`, `len` bytes long, if it lies inside.
    pub fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        let part = Self::new(self.addr.checked_add(offset)?, len)?;
        self.covers(&part).then_some(part)
    }

    /// The part that `pages` of it are, counted from its first page.
    ///
    /// # Panics
    ///
    /// If they are none, or not all inside.
    #[must_use]
    pub fn pages(&self, pages: Range<usize>) -> Self {
        self.slice(pages.start * PAGE_BYTES, pages.len() * PAGE_BYTES).expect("pages inside")
    }
}

impl fmt::Display for HostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.addr, self.end())
    }
}
