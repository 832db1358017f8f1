// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entry of a key, packed into 12 bytes.

use crate::frames::sync::SpinLock;
use crate::units::PAGE_BYTES;
use crate::zsmalloc::Handle;

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Nothing,
    /// A page of one repeated word.
    Same(u64),
    /// The page, uncompressed.
    Raw(Handle),
    /// Compressed by the codec, with its length in bytes.
    Packed(Handle, usize),
    /// In the bundle of the key, with its share of the bundle's bytes.
    Bundled(usize),
}

impl Kept {
    /// Bytes that it takes in addition to its slot.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Nothing | Self::Same(_) => 0,
            Self::Raw(_) => PAGE_BYTES,
            Self::Packed(_, len) | Self::Bundled(len) => len,
        }
    }
}

/// A slot in 12 bytes, so that it takes 16 with its lock.
#[derive(Clone, Copy)]
pub(super) struct StoreSlot {
    low: u32,
    high: u32,
    /// 0 nothing, 1 to 4095 bytes packed, [`StoreSlot::RAW`], that and 1 to 4095 bytes in a bundle,
    /// or [`StoreSlot::SAME`].
    form: u16,
}

const _: () = assert!(cfg!(loom) || size_of::<SpinLock<StoreSlot>>() == 16);

impl StoreSlot {
    const RAW: u16 = 4096;
    const SAME: u16 = u16::MAX;
    pub(super) const EMPTY: Self = Self { low: 0, high: 0, form: 0 };

    // The word is cut in two, and lengths are at most 4096.
    pub(super) fn new(kept: Kept) -> Self {
        let (word, form) = match kept {
            Kept::Nothing => (0, 0),
            Kept::Same(word) => (word, Self::SAME),
            Kept::Raw(handle) => (handle.to_bits(), Self::RAW),
            Kept::Packed(handle, len) => (handle.to_bits(), len as u16),
            Kept::Bundled(len) => (0, Self::RAW + len as u16),
        };
        Self { low: word as u32, high: (word >> 32) as u32, form }
    }

    pub(super) fn kept(self) -> Kept {
        let word = u64::from(self.high) << 32 | u64::from(self.low);
        match self.form {
            0 => Kept::Nothing,
            Self::SAME => Kept::Same(word),
            Self::RAW => Kept::Raw(Handle::from_bits(word)),
            len if len > Self::RAW => Kept::Bundled((len - Self::RAW).into()),
            len => Kept::Packed(Handle::from_bits(word), len.into()),
        }
    }
}
