// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device counts.

use crate::virtio::Progress;

/// Events since the device was made; they never fall.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GpuEvents {
    /// Commands answered, on either queue.
    pub commands: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// TRANSFER_TO_HOST_2D that copied.
    pub transfers: u64,
    /// Bytes that they copied.
    pub transfer_bytes: u64,
    /// RESOURCE_FLUSH.
    pub flushes: u64,
    /// Resources of which pages moved, counted once a command.
    pub migrations: u64,
    /// Those that did not.
    pub migrations_failed: u64,
    /// Pages that moved.
    pub migrated_pages: u64,
}

impl GpuEvents {
    /// Notes how the migration of `pages` pages of a resource has ended: `None` for a failure.
    pub(super) fn note_migration(&mut self, progress: Option<Progress>, pages: u64) {
        match progress {
            Some(Progress::More) => {}
            Some(Progress::Done) => {
                self.migrations += 1;
                self.migrated_pages += pages;
            }
            None => self.migrations_failed += 1,
        }
    }
}

/// Resources of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindStats {
    /// How many.
    pub count: u64,
    /// Their sizes, added up.
    pub bytes: u64,
}

/// The device's current state and counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GpuStats {
    /// 2D resources.
    pub images: KindStats,
    /// Blobs in guest memory.
    pub guest_blobs: KindStats,
    /// Blobs in host memory.
    pub host_blobs: KindStats,
    /// Guest memory that resources are backed by.
    pub backing_bytes: u64,
    /// Runs of consecutive addresses that it is in.
    pub backing_runs: u64,
    /// 4 KiB pages of it in a CMA region.
    pub cma_pages: u64,
    /// Host memory of images and host blobs.
    pub host_bytes: u64,
    /// Host memory mapped into the guest.
    pub mapped_bytes: u64,
    /// Events.
    pub counters: GpuEvents,
}
