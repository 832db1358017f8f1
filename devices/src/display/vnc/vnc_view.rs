// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What clients are shown, and for how long they are waited for.

use std::sync::Arc;
use std::time::Duration;

use mm::budget::Budget;

use crate::display::{DisplayFrames, ScanoutId};

/// Brings a scanout's whole picture to its frame: for a first look at a guest that draws nothing.
/// Called on a client's thread.
pub type Refresh = Arc<dyn Fn(ScanoutId) + Send + Sync>;

/// For how long a client is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the connection to the end of its handshake.
    pub handshake: Duration,
    /// From the first byte of a message to its last.
    pub message: Duration,
    /// Between two messages of a client without an outstanding request.
    pub idle: Duration,
    /// To read one strip of pixels, 256 KiB.
    pub strip: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            message: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            strip: Duration::from_secs(30),
        }
    }
}

/// What clients see.
#[derive(Clone)]
pub struct VncView {
    /// Frames of the display.
    pub frames: DisplayFrames,
    /// Which scanout.
    pub scanout: ScanoutId,
    /// How its picture is brought up to date.
    pub refresh: Refresh,
    /// For how long clients are waited for.
    pub patience: Patience,
    /// Places for clients, which it counts.
    pub places: Arc<Budget>,
    /// Threads, of which each client costs
    /// [`THREADS_PER_CLIENT`](super::THREADS_PER_CLIENT).
    pub threads: Arc<Budget>,
}
