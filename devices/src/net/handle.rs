// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The side of a network device that other threads see.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::latency::LatencyAggregate;
use crate::virtio::BucketUpdate;

/// Counters with the names of Firecracker's `net` metrics.
#[derive(Debug, Default, serde::Serialize)]
pub struct NetCounters {
    /// Activations that failed.
    pub activate_fails: AtomicU64,
    /// Accesses to configuration space that name no field.
    pub cfg_fails: AtomicU64,
    /// Frames that waited for a buffer of the guest's.
    pub no_rx_avail_buffer: AtomicU64,
    /// Rounds that found nothing to send.
    pub no_tx_avail_buffer: AtomicU64,
    /// Buffers that could not be used.
    pub event_fails: AtomicU64,
    /// Rounds of receiving.
    pub rx_queue_event_count: AtomicU64,
    /// Times that the rate limit put receiving off.
    pub rx_rate_limiter_throttled: AtomicU64,
    /// Bytes received, with their headers.
    pub rx_bytes_count: AtomicU64,
    /// Frames received.
    pub rx_packets_count: AtomicU64,
    /// Frames that could not be received.
    pub rx_fails: AtomicU64,
    /// Reads of the TAP that failed.
    pub tap_read_fails: AtomicU64,
    /// How long writes to the TAP took.
    pub tap_write_agg: LatencyAggregate,
    /// Writes to the TAP that failed.
    pub tap_write_fails: AtomicU64,
    /// Bytes sent, with their headers.
    pub tx_bytes_count: AtomicU64,
    /// Frames sent.
    pub tx_packets_count: AtomicU64,
    /// Frames too short or too long to be any.
    pub tx_malformed_frames: AtomicU64,
    /// Rounds of sending.
    pub tx_queue_event_count: AtomicU64,
    /// Times that the rate limit put sending off.
    pub tx_rate_limiter_throttled: AtomicU64,
    /// Queues that vhost-net processes now: the frames of these are counted by the TAP only.
    pub vhost_queues: AtomicU64,
}

impl NetCounters {
    /// Adds `count` to one of the counters.
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// Changes of the limits that wait for the device's thread: bytes and frames.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct LimiterChanges {
    pub(super) rx: (BucketUpdate, BucketUpdate),
    pub(super) tx: (BucketUpdate, BucketUpdate),
}

impl LimiterChanges {
    /// Whether there is no change.
    pub(super) fn is_empty(&self) -> bool {
        [self.rx.0, self.rx.1, self.tx.0, self.tx.1] == [BucketUpdate::Keep; 4]
    }
}

/// State shared by the device and its handles.
#[derive(Debug)]
pub(super) struct NetShared {
    pending: Mutex<LimiterChanges>,
    pub(super) wake: EventFd,
    pub(super) counters: NetCounters,
}

impl NetShared {
    pub(super) fn new(wake: EventFd) -> Self {
        Self { pending: Mutex::default(), wake, counters: NetCounters::default() }
    }

    pub(super) fn take_pending(&self) -> LimiterChanges {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The owner's handle of a network device.
#[derive(Debug, Clone)]
pub struct NetHandle {
    pub(super) shared: Arc<NetShared>,
}

impl NetHandle {
    /// Its counters.
    pub fn counters(&self) -> &NetCounters {
        &self.shared.counters
    }

    /// Changes the limits of receiving and sending, each of bytes and of frames; a bucket that is
    /// kept keeps its tokens.
    pub fn limit(&self, rx: (BucketUpdate, BucketUpdate), tx: (BucketUpdate, BucketUpdate)) {
        let merge = |to: &mut BucketUpdate, update| {
            if update != BucketUpdate::Keep {
                *to = update;
            }
        };
        let mut pending = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
        merge(&mut pending.rx.0, rx.0);
        merge(&mut pending.rx.1, rx.1);
        merge(&mut pending.tx.0, tx.0);
        merge(&mut pending.tx.1, tx.1);
        drop(pending);
        // It fails only when the counter is full, and then the loop is awake anyway.
        let _ = self.shared.wake.write(1);
    }
}
