// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Factors for time limits and memory sizes: a debug kernel in an emulated machine is slow and
//! large. Time limits only stop hung tests, so one factor for all is enough.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

static PATIENCE: AtomicU32 = AtomicU32::new(1);
static DEBUG_KERNEL: AtomicBool = AtomicBool::new(false);

/// A debug kernel's own use of guest memory, beyond an eighth (the shadow of KASAN).
const DEBUG_KERNEL_MIB: u64 = 96;

/// Makes all limits of this process longer by this factor.
pub fn set_patience(factor: u32) {
    PATIENCE.store(factor.max(1), Ordering::Relaxed);
}

/// Records that guests run the debug kernel.
pub fn set_debug_kernel(debug: bool) {
    DEBUG_KERNEL.store(debug, Ordering::Relaxed);
}

/// Whether guests run the debug kernel.
#[must_use]
pub fn debug_kernel() -> bool {
    DEBUG_KERNEL.load(Ordering::Relaxed)
}

/// What the debug kernel is started with: to free 32 MiB of contiguous memory takes it more than the
/// 20 seconds of its watchdog, as each page is unmapped (DEBUG_PAGEALLOC).
#[must_use]
pub fn debug_boot_args() -> &'static str {
    if debug_kernel() { " watchdog_thresh=60" } else { "" }
}

/// What a guest of ours must have for a test that is made for `mib` MiB.
#[must_use]
pub fn memory_mib(mib: u64) -> u64 {
    // In whole blocks.
    if debug_kernel() { (mib + mib / 7 + DEBUG_KERNEL_MIB).next_multiple_of(2) } else { mib }
}

/// That factor, for what has to be done in smaller portions because a limit is not ours to change.
#[must_use]
pub fn patience() -> u32 {
    PATIENCE.load(Ordering::Relaxed)
}

/// A limit, with that factor.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    limit * patience()
}
