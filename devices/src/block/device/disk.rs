// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The disk: an image behind an engine, and the properties that the driver sees.

use crate::block::disk_engine::{self, DiskEngine, RingConfig};
use crate::block::protocol::{BlockConfigSpace, ID_LEN, feature};
use crate::block::request::{DiskLimits, MAX_RANGE_SECTORS};
use crate::block::{CacheType, DiskImage, IoEngine};

/// An image, opened.
pub(super) struct Disk {
    pub(super) engine: Box<dyn DiskEngine>,
    pub(super) limits: DiskLimits,
    pub(super) cache: CacheType,
    pub(super) id: [u8; ID_LEN],
    /// What its ring is made with, if it has one.
    pub(super) ring: RingConfig,
    wanted: IoEngine,
}

impl Disk {
    /// `image` behind the engine that is `wanted`, or the next best.
    pub(super) fn open(
        image: DiskImage,
        cache: CacheType,
        wanted: IoEngine,
        ring: RingConfig,
    ) -> Self {
        let limits = DiskLimits { sectors: image.sectors(), read_only: image.read_only() };
        let id = image.id();
        let engine = disk_engine::open(image, wanted, &ring);
        Self { engine, limits, cache, id, ring, wanted }
    }

    /// Puts `image` in place of the one that is open, which is returned: closing it may wait for the
    /// host. No piece may be in flight.
    pub(super) fn replace(&mut self, image: DiskImage) -> Box<dyn DiskEngine> {
        self.limits.sectors = image.sectors();
        self.id = image.id();
        let new = disk_engine::open(image, self.wanted, &self.ring);
        std::mem::replace(&mut self.engine, new)
    }

    /// Features that the disk offers.
    pub(super) fn features(&self) -> u64 {
        let flush = if self.cache == CacheType::Writeback { feature::FLUSH } else { 0 };
        let access = match self.limits.read_only {
            true => feature::RO,
            false => feature::DISCARD | feature::WRITE_ZEROES,
        };
        feature::SEG_MAX | flush | access
    }

    /// The disk's part of configuration space.
    pub(super) fn config(&self) -> BlockConfigSpace {
        let writable = !self.limits.read_only;
        let range_sectors = if writable { MAX_RANGE_SECTORS } else { 0 };
        BlockConfigSpace {
            max_discard_sectors: range_sectors.into(),
            max_discard_seg: u32::from(writable).into(),
            discard_sector_alignment: 8.into(),
            max_write_zeroes_sectors: range_sectors.into(),
            max_write_zeroes_seg: u32::from(writable).into(),
            write_zeroes_may_unmap: u8::from(writable),
            ..BlockConfigSpace::default()
        }
    }
}
