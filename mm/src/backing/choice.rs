// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The choice among the kinds of backing.

use super::anonymous::Anonymous;
use super::hugetlbfs::Hugetlb;
use super::memfd::Memfd;
use super::{Backing, BackingError};
use crate::sys::mapping::HugePageSize;
use crate::units::Bytes;

/// The kinds of backing that a user may choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackingKind {
    /// Private memory, huge pages where the host has them (THP).
    #[default]
    Thp,
    /// Private memory, small pages only.
    Small,
    /// A file in memory that other processes can map, as vhost-user devices do.
    Memfd,
    /// Huge pages of 2 MiB from the host's pool.
    Hugetlb2M,
    /// Huge pages of 1 GiB from the host's pool.
    Hugetlb1G,
}

impl BackingKind {
    /// Reserves `len` bytes of this kind, aligned to 2 MiB or to the size of its huge pages.
    ///
    /// # Errors
    /// [`BackingError`], with the host's error.
    pub fn reserve(self, len: Bytes) -> Result<Box<dyn Backing>, BackingError> {
        Ok(match self {
            Self::Thp => Box::new(Anonymous::new(len, true)?),
            Self::Small => Box::new(Anonymous::new(len, false)?),
            Self::Memfd => Box::new(Memfd::new(len)?),
            Self::Hugetlb2M => Box::new(Hugetlb::new(len, HugePageSize::TwoMib)?),
            Self::Hugetlb1G => Box::new(Hugetlb::new(len, HugePageSize::OneGib)?),
        })
    }
}
