// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! UUIDs of resources: how other virtio devices of the same guest name them.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Makes UUIDs of version 8 (RFC 9562, 5.8): a random device number and the resource's serial.
pub(super) struct Uuids {
    device: u64,
}

impl Uuids {
    /// A device unlike any other.
    pub(super) fn new() -> Self {
        // The standard library seeds it from the system's randomness.
        Self { device: RandomState::new().build_hasher().finish() }
    }

    /// The UUID of the resource with this serial number; deterministic.
    pub(super) fn of(&self, serial: u64) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&self.device.to_be_bytes());
        uuid[8..].copy_from_slice(&serial.to_be_bytes());
        uuid[6] = uuid[6] & 0x0f | 0x80; // version 8
        uuid[8] = uuid[8] & 0x3f | 0x80; // variant of RFC 9562
        uuid
    }
}
