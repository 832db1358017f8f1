// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much longer than usual everything may take: a debug kernel in an emulated machine is slow.
//! Limits only end what hangs, so that a factor for all of them will do.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static PATIENCE: AtomicU32 = AtomicU32::new(1);

/// Makes all limits of this process longer by this factor.
pub fn set_patience(factor: u32) {
    PATIENCE.store(factor.max(1), Ordering::Relaxed);
}

/// A limit, with that factor.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    limit * PATIENCE.load(Ordering::Relaxed)
}
