// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The side of the socket device that other threads see.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters with the names of Firecracker's `vsock` metrics.
#[derive(Debug, Default, serde::Serialize)]
pub struct VsockCounters {
    /// Activations that failed.
    pub activate_fails: AtomicU64,
    /// Accesses to configuration space that name no field.
    pub cfg_fails: AtomicU64,
    /// Receive buffers that could not be used.
    pub rx_queue_event_fails: AtomicU64,
    /// Packets that could not be read.
    pub tx_queue_event_fails: AtomicU64,
    /// Events of the host's sockets that could not be read.
    pub muxer_event_fails: AtomicU64,
    /// Rounds of the receive queue.
    pub rx_queue_event_count: AtomicU64,
    /// Rounds of the transmit queue.
    pub tx_queue_event_count: AtomicU64,
    /// Bytes that went to the guest.
    pub rx_bytes_count: AtomicU64,
    /// Packets that went to the guest.
    pub rx_packets_count: AtomicU64,
    /// Bytes that came from the guest.
    pub tx_bytes_count: AtomicU64,
    /// Packets that came from the guest.
    pub tx_packets_count: AtomicU64,
    /// Connections begun.
    pub conns_added: AtomicU64,
    /// Connections that the device reset.
    pub conns_killed: AtomicU64,
    /// Connections ended.
    pub conns_removed: AtomicU64,
    /// Writes to the host's sockets that failed.
    pub tx_write_fails: AtomicU64,
    /// Reads of the host's sockets that failed.
    pub rx_read_fails: AtomicU64,
}

impl VsockCounters {
    /// Adds `count` to one of the counters.
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// The owner's handle of a socket device.
#[derive(Debug, Clone)]
pub struct VsockHandle {
    pub(super) counters: Arc<VsockCounters>,
}

impl VsockHandle {
    /// Its counters.
    pub fn counters(&self) -> &VsockCounters {
        &self.counters
    }
}
