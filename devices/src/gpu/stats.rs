// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device counts.

use mm::units::{Bytes, GuestRange};

use super::engine::Engine;
use super::resource::Kind;

/// Events since the device was made; they never fall.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
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

/// Resources of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindStats {
    /// How many.
    pub count: u64,
    /// Their sizes, added up.
    pub bytes: u64,
}

/// The device at this moment, and what it has counted.
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
    /// Pieces that it is in.
    pub backing_runs: u64,
    /// 4 KiB pages of it in a CMA region.
    pub cma_pages: u64,
    /// Host memory taken.
    pub host_bytes: u64,
    /// Host memory mapped into the guest.
    pub mapped_bytes: u64,
    /// Events.
    pub counters: Counters,
}

/// Looks at every resource: for a person's or a program's question, not for a hot path.
pub(super) fn collect(engine: &Engine, cma: &[GuestRange]) -> GpuStats {
    let mut stats = GpuStats {
        host_bytes: engine.host.used(),
        mapped_bytes: engine.window.mapped_bytes(),
        counters: engine.counters,
        ..GpuStats::default()
    };
    for (_, resource) in engine.resources.iter() {
        let kind = match resource.kind {
            Kind::Image(_) => &mut stats.images,
            Kind::GuestBlob(_) => &mut stats.guest_blobs,
            Kind::HostBlob(_) => &mut stats.host_blobs,
        };
        kind.count += 1;
        kind.bytes += resource.size();
        let Some(backing) = resource.backing() else { continue };
        stats.backing_bytes += backing.len();
        stats.backing_runs += backing.runs() as u64;
        for (addr, len) in backing.extents() {
            let Some(run) = GuestRange::inside_bytes(addr, Bytes(len)) else { continue };
            stats.cma_pages += cma
                .iter()
                .filter_map(|region| region.intersection(&run))
                .map(|both| both.pages().0)
                .sum::<u64>();
        }
    }
    stats
}
