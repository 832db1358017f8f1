// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon's wire format: feature bits, configuration space, and queue contents
//! (virtio 1.3, 5.5; Linux include/uapi/linux/virtio_balloon.h; `docs/virtio-extensions.md` and
//! `guest-kernel/uapi/ballast_balloon.h` for blocks and evacuation).
//!
//! Decoding only. All fields are little-endian.

use mm::units::{PAGES_PER_BLOCK, Pfn};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Device type of a traditional memory balloon.
pub const DEVICE_TYPE: u32 = 5;

/// Feature bits.
pub mod feature {
    /// The driver notifies the device before it uses a page of the balloon again.
    pub const MUST_TELL_HOST: u64 = 1 << 0;
    /// A queue for memory statistics.
    pub const STATS_VQ: u64 = 1 << 1;
    /// The guest deflates the balloon instead of letting the OOM killer act.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// A queue for hints of free pages, on the device's command.
    pub const FREE_PAGE_HINT: u64 = 1 << 3;
    /// The guest fills free pages with a pattern that it checks.
    pub const PAGE_POISON: u64 = 1 << 4;
    /// A queue for free pages, as they become free.
    pub const REPORTING: u64 = 1 << 5;
    /// The driver keeps a hinted page until the device has used the hint (posted to the kernel's
    /// list in January 2026; not in the standard yet).
    pub const HINT_WAIT_ON_ACK: u64 = 1 << 6;
    /// A queue for whole blocks.
    pub const BLOCKS: u64 = 1 << 56;
    /// A queue for evacuation requests; needs [`BLOCKS`].
    pub const EVACUATE: u64 = 1 << 57;
    /// Statistics say how CMA regions are used; needs [`STATS_VQ`].
    pub const CMA_STATS: u64 = 1 << 58;
}

/// `free_page_hint_cmd_id`: the device wants no hints; from the driver: this run is over.
pub const CMD_ID_STOP: u32 = 0;
/// `free_page_hint_cmd_id`: the driver may use the hinted pages again.
pub const CMD_ID_DONE: u32 = 1;

/// Most blocks in one block request, and in one evacuation request.
pub const BLOCK_MAX: u32 = 256;

/// Configuration space.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BalloonConfigSpace {
    /// Pages that the host wants in the balloon.
    pub num_pages: U32,
    /// Pages that the driver says are in it.
    pub actual: U32,
    /// Command id of free page hinting.
    pub free_page_hint_cmd_id: U32,
    /// The pattern that the driver fills free pages with.
    pub poison_val: U32,
    /// Pages in a block; with BLOCKS.
    pub block_pages: U32,
    /// Most blocks in one request; with BLOCKS.
    pub block_max: U32,
}

impl BalloonConfigSpace {
    /// Offset of `actual`, which the driver writes.
    pub const ACTUAL: u64 = 4;
    /// Offset of `poison_val`, which the driver writes.
    pub const POISON_VAL: u64 = 12;
    /// Length of the standard's part.
    pub const STANDARD_LEN: usize = 16;
}

/// One entry of a statistics buffer.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Stat {
    /// What is counted.
    pub tag: U16,
    /// How much: bytes or events.
    pub value: U64,
}

/// Meaning of a statistics entry (Linux 6.12, and our tags for CMA; values in bytes or events as
/// the variant says).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatTag {
    /// Bytes swapped in.
    SwapIn,
    /// Bytes swapped out.
    SwapOut,
    /// Major faults.
    MajorFaults,
    /// Minor faults.
    MinorFaults,
    /// Bytes free.
    FreeMemory,
    /// Bytes in all.
    TotalMemory,
    /// Bytes available to a new workload without swapping.
    AvailableMemory,
    /// Bytes of page cache.
    DiskCaches,
    /// Huge pages allocated from the buddy allocator.
    HugetlbAllocations,
    /// Failures of the same.
    HugetlbFailures,
    /// Processes killed by the OOM killer.
    OomKill,
    /// Allocations that stalled on reclaim.
    AllocStall,
    /// Bytes scanned by kswapd.
    AsyncScan,
    /// Bytes scanned by allocations.
    DirectScan,
    /// Bytes reclaimed by kswapd.
    AsyncReclaim,
    /// Bytes reclaimed by allocations.
    DirectReclaim,
    /// Bytes of all CMA regions.
    CmaTotal,
    /// Unused bytes of them.
    CmaFree,
    /// Bytes of them that devices have, contiguous.
    CmaAllocated,
    /// A tag of a newer driver.
    Unsupported(u16),
}

impl From<u16> for StatTag {
    fn from(tag: u16) -> Self {
        match tag {
            0 => Self::SwapIn,
            1 => Self::SwapOut,
            2 => Self::MajorFaults,
            3 => Self::MinorFaults,
            4 => Self::FreeMemory,
            5 => Self::TotalMemory,
            6 => Self::AvailableMemory,
            7 => Self::DiskCaches,
            8 => Self::HugetlbAllocations,
            9 => Self::HugetlbFailures,
            10 => Self::OomKill,
            11 => Self::AllocStall,
            12 => Self::AsyncScan,
            13 => Self::DirectScan,
            14 => Self::AsyncReclaim,
            15 => Self::DirectReclaim,
            0xb000 => Self::CmaTotal,
            0xb001 => Self::CmaFree,
            0xb002 => Self::CmaAllocated,
            tag => Self::Unsupported(tag),
        }
    }
}

/// Head of a request on the block queue; `count` block numbers follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlocksHeader {
    /// The operation; see [`BlocksOp`].
    pub op: U32,
    /// Number of `le64 start_pfn` entries that follow.
    pub count: U32,
}

/// Operation of a request on the block queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlocksOp {
    /// The blocks go into the balloon.
    Inflate,
    /// Takes blocks out of it.
    Deflate,
    /// Something else.
    Unsupported(u32),
}

impl From<u32> for BlocksOp {
    fn from(op: u32) -> Self {
        match op {
            1 => Self::Inflate,
            2 => Self::Deflate,
            op => Self::Unsupported(op),
        }
    }
}

/// Status of a request on the block queue. With any value except `Ok`, nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum BlocksStatus {
    /// Done.
    Ok = 0,
    /// Unknown operation, a count of 0 or too large, or a buffer too short.
    BadRequest = 1,
    /// A block is misaligned, not wholly RAM, or named twice.
    BadBlock = 2,
    /// Inflate: a page is already in the balloon; deflate: a page is not in it.
    BadState = 3,
}

impl BlocksStatus {
    /// As written to the driver's buffer.
    pub fn to_le_bytes(self) -> [u8; 4] {
        (self as u32).to_le_bytes()
    }
}

/// An evacuation request, written by the device.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct EvacuationRequest {
    /// Names the request in its answer; never 0.
    pub id: U64,
    /// First page of the first block.
    pub start_pfn: U64,
    /// Number of consecutive blocks, 1 to [`BLOCK_MAX`].
    pub nr_blocks: U32,
    /// [`EvacuationRequest::SYNC`] or nothing.
    pub flags: U32,
}

impl EvacuationRequest {
    /// Wait for busy pages.
    pub const SYNC: u32 = 1 << 0;
}

/// The answer to it; one byte for each block follows.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EvacuationAnswer {
    /// Which request; 0 if this is no answer.
    pub id: U64,
    /// Blocks that are in the balloon now.
    pub evacuated: U32,
    /// Blocks that could not be evacuated.
    pub busy: U32,
    /// Pages of processes and of the page cache that were moved.
    pub migrated_lru: U64,
    /// Balloon pages that were moved.
    pub migrated_balloon: U64,
    /// Compressed-memory pages that were moved.
    pub migrated_zsmalloc: U64,
    /// GPU pages that were moved.
    pub migrated_gpu: U64,
}

/// Result for one block of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOutcome {
    /// Given up: it is in the balloon.
    Evacuated,
    /// A page in it cannot be moved, temporarily or permanently.
    Busy,
    /// Not memory that the driver has.
    NotRam,
    /// An unknown outcome.
    Unsupported(u8),
}

impl From<u8> for BlockOutcome {
    fn from(outcome: u8) -> Self {
        match outcome {
            0 => Self::Evacuated,
            1 => Self::Busy,
            2 => Self::NotRam,
            outcome => Self::Unsupported(outcome),
        }
    }
}

/// Decodes one page number of the inflate and deflate queues.
pub fn decode_pfn(raw: [u8; 4]) -> Pfn {
    Pfn(u64::from(u32::from_le_bytes(raw)))
}

/// The block's first page, if the entry is one.
pub fn decode_block(raw: [u8; 8]) -> Option<mm::units::BlockId> {
    let pfn = Pfn(u64::from_le_bytes(raw));
    pfn.is_block_aligned().then(|| pfn.block())
}

const _: () = {
    assert!(size_of::<BalloonConfigSpace>() == 24);
    assert!(size_of::<Stat>() == 10);
    assert!(size_of::<BlocksHeader>() == 8);
    assert!(size_of::<EvacuationRequest>() == 24);
    assert!(size_of::<EvacuationAnswer>() == 48);
    assert!(PAGES_PER_BLOCK == 512);
};
