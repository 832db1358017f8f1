// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A block device's interface for other threads, which never wait for its I/O.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::image::FileIdentity;
use super::{DiskImage, ImageError};
use crate::latency::LatencyAggregate;
use crate::virtio::BucketUpdate;

/// Counters with the names of Firecracker's `block` metrics.
#[derive(Debug, Default, serde::Serialize)]
pub struct BlockCounters {
    /// Activations that failed.
    pub activate_fails: AtomicU64,
    /// Accesses to configuration space that name no field.
    pub cfg_fails: AtomicU64,
    /// Rounds of processing that found a queue empty.
    pub no_avail_buffer: AtomicU64,
    /// Buffers that could not be used.
    pub event_fails: AtomicU64,
    /// Requests that the host failed.
    pub execute_fails: AtomicU64,
    /// Malformed requests.
    pub invalid_reqs_count: AtomicU64,
    /// Flushes done.
    pub flush_count: AtomicU64,
    /// Discards and write-zeroes done.
    pub discard_count: AtomicU64,
    /// Notifications of queues.
    pub queue_event_count: AtomicU64,
    /// Times that the rate limit's timer went off.
    pub rate_limiter_event_count: AtomicU64,
    /// Changes of image or limits.
    pub update_count: AtomicU64,
    /// Changes that failed.
    pub update_fails: AtomicU64,
    /// Bytes read by the guest.
    pub read_bytes: AtomicU64,
    /// Bytes written by the guest.
    pub write_bytes: AtomicU64,
    /// Reads done.
    pub read_count: AtomicU64,
    /// Writes done.
    pub write_count: AtomicU64,
    /// How long reads took, from the queue to their answer.
    pub read_agg: LatencyAggregate,
    /// How long writes took, from the queue to their answer.
    pub write_agg: LatencyAggregate,
    /// Times that the rate limit put a request off.
    pub rate_limiter_throttled_events: AtomicU64,
}

impl BlockCounters {
    /// Adds `count` to one of the counters.
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// Why a disk's image was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The file cannot be a disk.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A qcow2 image cannot be replaced.
    #[error("cannot replace a disk image that is not raw while the guest runs")]
    NotRaw,
}

/// Changes waiting for the device's thread.
#[derive(Debug, Default)]
pub(super) struct PendingChanges {
    pub(super) image: Option<DiskImage>,
    pub(super) bytes: BucketUpdate,
    pub(super) ops: BucketUpdate,
}

/// State shared by the device and its handles.
#[derive(Debug)]
pub(super) struct BlockShared {
    pending: Mutex<PendingChanges>,
    /// The image that is in use, or is about to be.
    current: Mutex<Current>,
    pub(super) wake: EventFd,
    pub(super) counters: BlockCounters,
}

#[derive(Debug, Clone)]
struct Current {
    place: FileIdentity,
    /// The file, if it is raw.
    file: Option<Arc<File>>,
    read_only: bool,
    sectors: u64,
}

impl Current {
    fn of(image: &DiskImage) -> Self {
        Self {
            place: image.place(),
            file: image.raw_file().cloned(),
            read_only: image.read_only(),
            sectors: image.sectors(),
        }
    }
}

impl BlockShared {
    pub(super) fn new(image: &DiskImage, wake: EventFd) -> Self {
        Self {
            pending: Mutex::default(),
            current: Mutex::new(Current::of(image)),
            wake,
            counters: BlockCounters::default(),
        }
    }

    /// The requested changes, if any.
    pub(super) fn take_pending(&self) -> PendingChanges {
        std::mem::take(&mut *lock(&self.pending))
    }

    /// Sectors of the newest image, for configuration space.
    pub(super) fn sectors(&self) -> u64 {
        lock(&self.current).sectors
    }
}

/// The owner's handle of a block device.
#[derive(Debug, Clone)]
pub struct BlockHandle {
    pub(super) shared: Arc<BlockShared>,
}

impl BlockHandle {
    /// Its counters.
    pub fn counters(&self) -> &BlockCounters {
        &self.shared.counters
    }

    /// Size of the disk in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.shared.sectors()
    }

    /// Replaces the disk's image with `file`, which must be open with the disk's access mode.
    /// Requests in flight complete on the old image; the driver is notified of the new size.
    ///
    /// With the same file, the device reads its size again.
    ///
    /// # Errors
    ///
    /// The file cannot be a disk, or the disk is not raw; the disk is then unchanged.
    pub fn replace(&self, file: File) -> Result<(), ReplaceError> {
        let replaced = self.try_replace(file);
        let counters = &self.shared.counters;
        let counter = match &replaced {
            Ok(()) => &counters.update_count,
            Err(_) => &counters.update_fails,
        };
        BlockCounters::add(counter, 1);
        replaced
    }

    fn try_replace(&self, file: File) -> Result<(), ReplaceError> {
        let mut current = lock(&self.shared.current);
        let Some(old) = current.file.clone() else { return Err(ReplaceError::NotRaw) };
        let read_only = current.read_only;
        let same = FileIdentity::of(&file).map_err(ImageError::Host)? == current.place;
        // This process's lock would reject a second descriptor of the same file.
        let image = match same {
            true => DiskImage::locked_raw(old, read_only)?,
            false => DiskImage::raw(file, read_only)?,
        };
        *current = Current::of(&image);
        lock(&self.shared.pending).image = Some(image);
        drop(current);
        self.wake();
        Ok(())
    }

    /// Changes the limits; a bucket that is kept keeps its tokens.
    pub fn limit(&self, bytes: BucketUpdate, ops: BucketUpdate) {
        let mut pending = lock(&self.shared.pending);
        if bytes != BucketUpdate::Keep {
            pending.bytes = bytes;
        }
        if ops != BucketUpdate::Keep {
            pending.ops = ops;
        }
        drop(pending);
        BlockCounters::add(&self.shared.counters.update_count, 1);
        self.wake();
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the loop is awake anyway.
        let _ = self.shared.wake.write(1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
