// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs of blocks that are alike.

use mm::blocks::map::{Block, BlockFlags, BlockMap};
use mm::units::{BLOCK_SIZE, BlockId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// First bytes of the compact form: the name and the version of it.
const MAGIC: [u8; 8] = *b"BLKMAP\x00\x01";
/// Bytes of a run in the compact form.
const RUN_BYTES: usize = 24;

/// All blocks of a guest's RAM, in ascending order (`GET /memory/blocks`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlockRuns {
    /// Bytes in a block: 2 MiB.
    pub block_bytes: u64,
    /// The runs, in ascending order. A gap between two runs is not RAM.
    pub runs: Vec<BlockRun>,
}

/// A run of consecutive blocks with the same state. Counts are 4 KiB pages in each block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlockRun {
    /// Number of the first block: its guest-physical address divided by 2 MiB.
    pub first: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// Pages in the host's memory.
    pub present: u16,
    /// Pages in the balloon.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ballooned: u16,
    /// Pages that the guest reported free.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reported: u16,
    /// Pages that back GPU resources.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpu: u16,
    /// Pages that are in the balloon but still resident.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wasted: u16,
    /// Mapped as huge pages.
    #[serde(default, skip_serializing_if = "is_false")]
    pub huge: bool,
    /// In the CMA region.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cma: bool,
}

/// Why bytes are no block map.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RunsError {
    /// They do not begin as one.
    #[error("not a block map, or a block map of an unknown version")]
    Magic,
    /// They end in the middle of a run.
    #[error("the block map is truncated")]
    Short,
}

impl BlockRuns {
    /// The runs of `map`.
    pub fn of(map: &BlockMap) -> Self {
        let mut runs: Vec<BlockRun> = Vec::new();
        for (id, block) in map.iter() {
            let run = BlockRun::of(id, block);
            match runs.last_mut() {
                Some(last) if last.continues_with(&run) => last.blocks += 1,
                _ => runs.push(run),
            }
        }
        Self { block_bytes: BLOCK_SIZE, runs }
    }

    /// Every single block, with its number.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &BlockRun)> {
        self.runs.iter().flat_map(|run| {
            (0..u64::from(run.blocks)).map(move |i| (run.first.saturating_add(i), run))
        })
    }

    /// The compact form: 8 bytes of name and version, then 24 bytes a run, little-endian: number of
    /// the first block (8), blocks (4), present, ballooned, reported, gpu, wasted (2 each), flags
    /// (2: bit 0 huge, 1 CMA).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAGIC.len() + self.runs.len() * RUN_BYTES);
        out.extend(MAGIC);
        for run in &self.runs {
            out.extend(run.first.to_le_bytes());
            out.extend(run.blocks.to_le_bytes());
            for count in [run.present, run.ballooned, run.reported, run.gpu, run.wasted] {
                out.extend(count.to_le_bytes());
            }
            let flags = u16::from(run.huge) | u16::from(run.cma) << 1;
            out.extend(flags.to_le_bytes());
        }
        out
    }

    /// Reads the compact form.
    ///
    /// # Errors
    ///
    /// [`RunsError`]: the bytes are not a block map, or cut short.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RunsError> {
        let body = bytes.strip_prefix(&MAGIC).ok_or(RunsError::Magic)?;
        let (runs, rest) = body.as_chunks::<RUN_BYTES>();
        if !rest.is_empty() {
            return Err(RunsError::Short);
        }
        Ok(Self { block_bytes: BLOCK_SIZE, runs: runs.iter().map(BlockRun::from_bytes).collect() })
    }
}

impl BlockRun {
    fn of(id: BlockId, block: &Block) -> Self {
        Self {
            first: id.0,
            blocks: 1,
            present: block.present,
            ballooned: block.ballooned,
            reported: block.reported,
            gpu: block.gpu,
            wasted: block.wasted,
            huge: block.flags.contains(BlockFlags::HUGE),
            cma: block.flags.contains(BlockFlags::CMA),
        }
    }

    fn from_bytes(bytes: &[u8; RUN_BYTES]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let flags = u16_at(22);
        let first = bytes.first_chunk().expect("a run exceeds the map's block count");
        Self {
            first: u64::from_le_bytes(*first),
            blocks: u32::from(u16_at(8)) | u32::from(u16_at(10)) << 16,
            present: u16_at(12),
            ballooned: u16_at(14),
            reported: u16_at(16),
            gpu: u16_at(18),
            wasted: u16_at(20),
            huge: flags & 1 != 0,
            cma: flags & 2 != 0,
        }
    }

    /// Whether `next` is adjacent and has the same state.
    fn continues_with(&self, next: &Self) -> bool {
        let follows = self.first.checked_add(u64::from(self.blocks)) == Some(next.first);
        follows && *self == Self { first: self.first, blocks: self.blocks, ..*next }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u16) -> bool {
    *count == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use mm::backing::BackingKind;
    use mm::blocks::map::Holdings;
    use mm::guest_ram::GuestRam;
    use mm::layout::MemoryLayout;
    use mm::units::Bytes;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_blocks_are_one_run() {
        let mib = |n| Bytes::from_mib(n).unwrap();
        let layout = MemoryLayout::new(mib(64), mib(8)).unwrap();
        let ram = GuestRam::new(layout, BackingKind::Small).unwrap();
        let map = BlockMap::read(&ram, &Holdings::default()).unwrap();
        let runs = BlockRuns::of(&map);
        let sizes: Vec<_> = runs.runs.iter().map(|r| (r.first, r.blocks, r.cma)).collect();
        assert_eq!(sizes, [(0, 27, false), (27, 4, true), (31, 1, false)]);
        assert_eq!(runs.iter().count(), 32);
    }

    #[test]
    fn the_hole_ends_a_run() {
        let mib = |n| Bytes::from_mib(n).unwrap();
        let layout = MemoryLayout::new(mib(4096), mib(0)).unwrap();
        let ram = GuestRam::new(layout, BackingKind::Small).unwrap();
        let runs = BlockRuns::of(&BlockMap::read(&ram, &Holdings::default()).unwrap());
        let sizes: Vec<_> = runs.runs.iter().map(|r| (r.first, r.blocks)).collect();
        assert_eq!(sizes, [(0, 1536), (2048, 512)]);
    }

    #[test]
    fn other_bytes_are_refused() {
        assert_eq!(BlockRuns::from_bytes(b"BLKMAP"), Err(RunsError::Magic));
        assert_eq!(BlockRuns::from_bytes(b"BLKMAP\x00\x02"), Err(RunsError::Magic));
        assert_eq!(BlockRuns::from_bytes(b"BLKMAP\x00\x01abc"), Err(RunsError::Short));
    }

    proptest! {
        #[test]
        fn both_forms_come_back(
            runs in prop::collection::vec(
                (any::<u64>(), any::<u32>(), any::<[u16; 5]>(), any::<[bool; 2]>()), 0..20),
        ) {
            let run = |(first, blocks, counts, flags): (u64, u32, [u16; 5], [bool; 2])| {
                let [present, ballooned, reported, gpu, wasted] = counts;
                let [huge, cma] = flags;
                BlockRun { first, blocks, present, ballooned, reported, gpu, wasted, huge, cma }
            };
            let all = BlockRuns { block_bytes: BLOCK_SIZE, runs: runs.into_iter().map(run).collect() };
            prop_assert_eq!(BlockRuns::from_bytes(&all.to_bytes()).unwrap(), all.clone());
            let json = serde_json::to_string(&all).unwrap();
            prop_assert_eq!(serde_json::from_str::<BlockRuns>(&json).unwrap(), all);
        }
    }
}
