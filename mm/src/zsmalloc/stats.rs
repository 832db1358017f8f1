// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a pool reports about itself.

use super::class::SizeClass;
use super::zspage::GROUPS;

/// Contents and memory use of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZsStats {
    /// Objects in use.
    pub objects: u64,
    /// Bytes of their slots.
    pub slot_bytes: u64,
    /// Frames in zspages.
    pub frames: u64,
    /// Most frames at any time.
    pub frames_max: u64,
    /// Zspages.
    pub zspages: u64,
    /// Bytes of tables outside the frames.
    pub metadata_bytes: u64,
    /// Frames given back by compaction so far.
    pub frames_compacted: u64,
    /// Frames moved by the frame pool so far.
    pub frames_migrated: u64,
}

/// One class of a pool, as in zsmalloc's statistics file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassInfo {
    /// Its shape.
    pub class: SizeClass,
    /// Zspages by fullness group: empty, four quarters, full.
    pub groups: [u32; GROUPS],
    /// Objects in use.
    pub objects: u32,
}
