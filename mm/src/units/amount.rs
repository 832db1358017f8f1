// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Amounts of memory.

use std::fmt;

use super::{PAGE_SHIFT, PAGE_SIZE};

/// An amount of memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `mib` mebibytes, or `None` if that does not fit.
    pub const fn from_mib(mib: u64) -> Option<Self> {
        match mib.checked_mul(1 << 20) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// `mib` mebibytes, or the largest amount if that does not fit.
    pub const fn saturating_from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// Whole mebibytes, rounded down.
    pub const fn as_mib(self) -> u64 {
        self.0 >> 20
    }

    /// Whole pages, rounded down.
    pub const fn as_pages(self) -> Pages {
        Pages(self.0 >> PAGE_SHIFT)
    }

    /// Whether this is a whole number of `unit`s.
    pub const fn is_multiple_of(self, unit: u64) -> bool {
        self.0.is_multiple_of(unit)
    }

    /// The sum, or the largest amount that fits.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b if b != 0 && b.is_multiple_of(1 << 30) => write!(f, "{} GiB", b >> 30),
            b if b != 0 && b.is_multiple_of(1 << 20) => write!(f, "{} MiB", b >> 20),
            b if b != 0 && b.is_multiple_of(1 << 10) => write!(f, "{} KiB", b >> 10),
            b => write!(f, "{b} bytes"),
        }
    }
}

/// An amount of memory in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pages(pub u64);

impl Pages {
    /// The same amount in bytes, or `None` if that does not fit.
    pub const fn checked_bytes(self) -> Option<Bytes> {
        match self.0.checked_mul(PAGE_SIZE) {
            Some(bytes) => Some(Bytes(bytes)),
            None => None,
        }
    }

    /// The same amount in bytes; an amount that does not fit is the largest that does.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(PAGE_SIZE))
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages", self.0)
    }
}
