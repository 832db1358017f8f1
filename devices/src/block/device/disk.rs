// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The disk: an image behind an engine, and the properties that the driver sees.

use std::os::fd::RawFd;

use crate::block::engine::{self, Engine};
use crate::block::protocol::{Config, ID_LEN, feature};
use crate::block::request::{Limits, MAX_RANGE_SECTORS};
use crate::block::{CacheType, Image, IoEngine};

/// An image, opened.
pub(super) struct Disk {
    pub(super) engine: Box<dyn Engine>,
    pub(super) limits: Limits,
    pub(super) cache: CacheType,
    pub(super) id: [u8; ID_LEN],
    /// Most requests under way.
    pub(super) slots: u16,
    wanted: IoEngine,
}

impl Disk {
    /// Opens `image` with the engine `wanted`, or the next best. The engine writes to `wake` when a
    /// piece completes.
    pub(super) fn open(
        image: Image,
        cache: CacheType,
        wanted: IoEngine,
        wake: RawFd,
        slots: u16,
    ) -> Self {
        let limits = Limits { sectors: image.sectors(), read_only: image.read_only() };
        let id = image.id();
        let engine = engine::open(image, wanted, wake, slots);
        Self { engine, limits, cache, id, slots, wanted }
    }

    /// Replaces the open image with `image`. No piece may be in flight.
    pub(super) fn replace(&mut self, image: Image, wake: RawFd) {
        self.limits.sectors = image.sectors();
        self.id = image.id();
        self.engine = engine::open(image, self.wanted, wake, self.slots);
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
    pub(super) fn config(&self) -> Config {
        let writable = !self.limits.read_only;
        let range_sectors = if writable { MAX_RANGE_SECTORS } else { 0 };
        Config {
            max_discard_sectors: range_sectors.into(),
            max_discard_seg: u32::from(writable).into(),
            discard_sector_alignment: 8.into(),
            max_write_zeroes_sectors: range_sectors.into(),
            max_write_zeroes_seg: u32::from(writable).into(),
            write_zeroes_may_unmap: u8::from(writable),
            ..Config::default()
        }
    }
}
