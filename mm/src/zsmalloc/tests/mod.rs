// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of zsmalloc.
//!
//! - `basics.rs` one subject at a time, and random histories against a model
//! - `stress.rs` threads that do everything at once

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod basics;
mod stress;

use std::sync::Arc;

use crate::frames::{FramePool, PoolConfig, Region};
use crate::units::BLOCK_BYTES;

fn frames(blocks: usize) -> Arc<FramePool> {
    let region = Region::anonymous(blocks * BLOCK_BYTES).unwrap();
    FramePool::new(region, PoolConfig::default()).unwrap()
}

/// The bytes that an object of `size` bytes with this seed should hold.
fn pattern(seed: u64, size: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..size)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}
