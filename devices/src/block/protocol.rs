// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device on the wire (virtio 1.3, 5.2). Decoding only; all fields are little-endian.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Device type of a block device.
pub const DEVICE_TYPE: u32 = 2;
/// Bytes of a sector, the unit of all positions.
pub const SECTOR: u64 = 512;
/// Bytes that GET_ID returns (5.2.6).
pub const ID_LEN: usize = 20;

/// Feature bits (5.2.3).
pub mod feature {
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk cannot be written.
    pub const RO: u64 = 1 << 5;
    /// Flushes are served.
    pub const FLUSH: u64 = 1 << 9;
    /// There are several queues.
    pub const MQ: u64 = 1 << 12;
    /// Discards are served.
    pub const DISCARD: u64 = 1 << 13;
    /// Write-zeroes is served.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// The fields of configuration space (5.2.4) that this device has.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockConfigSpace {
    /// Size in sectors.
    pub capacity: U64,
    /// Largest segment; not negotiated.
    pub size_max: U32,
    /// Most segments of one request.
    pub seg_max: U32,
    /// Cylinders, heads, sectors; not negotiated.
    pub geometry: [u8; 4],
    /// Block size; not negotiated.
    pub blk_size: U32,
    /// Alignment hints; not negotiated.
    pub topology: [u8; 8],
    /// Cache mode; not negotiated.
    pub writeback: u8,
    /// Padding.
    pub unused0: u8,
    /// Request queues.
    pub num_queues: U16,
    /// Most sectors of one discard.
    pub max_discard_sectors: U32,
    /// Most segments of one discard.
    pub max_discard_seg: U32,
    /// Sectors that a discard is best aligned to.
    pub discard_sector_alignment: U32,
    /// Most sectors of one write-zeroes.
    pub max_write_zeroes_sectors: U32,
    /// Most segments of one write-zeroes.
    pub max_write_zeroes_seg: U32,
    /// Whether write-zeroes may deallocate.
    pub write_zeroes_may_unmap: u8,
    /// Padding.
    pub unused1: [u8; 3],
}

/// Header of every request (5.2.6).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockHeader {
    /// What is asked for.
    pub kind: U32,
    /// Not used.
    pub reserved: U32,
    /// First sector.
    pub sector: U64,
}

impl BlockHeader {
    /// Its length in bytes.
    pub const LEN: usize = size_of::<Self>();
}

/// Range of discard and write-zeroes (5.2.6).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RangeEntry {
    /// First sector.
    pub sector: U64,
    /// Number of sectors.
    pub num_sectors: U32,
    /// Bit 0: the sectors may be deallocated (write-zeroes only).
    pub flags: U32,
}

impl RangeEntry {
    /// Its length in bytes.
    pub const LEN: usize = size_of::<Self>();
    /// `flags`: the sectors may be deallocated.
    pub const UNMAP: u32 = 1;
}

/// Types of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// From the disk to the guest.
    In,
    /// From the guest to the disk.
    Out,
    /// Makes earlier writes durable.
    Flush,
    /// The disk's name.
    GetId,
    /// The contents of a range are no longer needed.
    Discard,
    /// A range becomes zero.
    WriteZeroes,
    /// None of these.
    Unsupported(u32),
}

impl From<u32> for RequestKind {
    fn from(raw: u32) -> Self {
        match raw {
            0 => Self::In,
            1 => Self::Out,
            4 => Self::Flush,
            8 => Self::GetId,
            11 => Self::Discard,
            13 => Self::WriteZeroes,
            other => Self::Unsupported(other),
        }
    }
}

/// The last byte of every request (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The device or the driver erred.
    IoErr = 1,
    /// The request is unknown to the device.
    Unsupported = 2,
}
