// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One request, taken from its descriptors and checked against the disk (virtio 1.3, 5.2.6).
//!
//! How the driver cuts a request into descriptors means nothing (2.7.4.3): the header is the first
//! 16 readable bytes, the status the last writable one.

use zerocopy::FromBytes;

use super::protocol::{BlockHeader, RangeEntry, RequestKind, SECTOR, Status};
use crate::virtio::ChainMemory;

/// Most sectors of one discard or write-zeroes: 4 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 8 << 20;

/// The disk that requests are checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct DiskLimits {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
}

/// The operation, with offsets in bytes within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskOperation {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
    GetId,
    Discard { offset: u64 },
    WriteZeroes { offset: u64, unmap: bool },
}

/// A request that can be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DiskRequest {
    pub(super) operation: DiskOperation,
    /// Bytes on the disk, or of the answer.
    pub(super) len: u64,
}

/// Reads and checks the request in `buffer`.
///
/// # Errors
///
/// The status for the driver.
pub(super) fn parse(buffer: &ChainMemory, limits: DiskLimits) -> Result<DiskRequest, Status> {
    let mut raw = [0; BlockHeader::LEN];
    if buffer.readable.read(0, &mut raw) < raw.len() {
        return Err(Status::IoErr);
    }
    let header = BlockHeader::read_from_bytes(&raw).map_err(|_| Status::IoErr)?;
    let to_device = (buffer.readable.len() - BlockHeader::LEN) as u64;
    // Its last byte is the status.
    let to_driver = buffer.writable.len().saturating_sub(1) as u64;
    let (operation, len) = match RequestKind::from(header.kind.get()) {
        RequestKind::In => {
            let offset = limits.check(header.sector.get(), to_driver)?;
            (DiskOperation::Read { offset }, to_driver)
        }
        RequestKind::Out => {
            limits.check_writable()?;
            let offset = limits.check(header.sector.get(), to_device)?;
            (DiskOperation::Write { offset }, to_device)
        }
        RequestKind::Flush => (DiskOperation::Flush, 0),
        RequestKind::GetId => (DiskOperation::GetId, to_driver.min(super::protocol::ID_LEN as u64)),
        kind @ (RequestKind::Discard | RequestKind::WriteZeroes) => range(buffer, kind, limits)?,
        RequestKind::Unsupported(_) => return Err(Status::Unsupported),
    };
    Ok(DiskRequest { operation, len })
}

/// The one range of a discard or write-zeroes (5.2.6.2).
fn range(
    buffer: &ChainMemory,
    kind: RequestKind,
    limits: DiskLimits,
) -> Result<(DiskOperation, u64), Status> {
    limits.check_writable()?;
    if buffer.readable.len() != BlockHeader::LEN + RangeEntry::LEN {
        // The device announces one range a request.
        return Err(Status::IoErr);
    }
    let mut raw = [0; RangeEntry::LEN];
    buffer.readable.read(BlockHeader::LEN, &mut raw);
    let entry = RangeEntry::read_from_bytes(&raw).map_err(|_| Status::IoErr)?;
    let (sectors, flags) = (entry.num_sectors.get(), entry.flags.get());
    if sectors > MAX_RANGE_SECTORS {
        return Err(Status::IoErr);
    }
    let len = u64::from(sectors) * SECTOR;
    let offset = limits.check(entry.sector.get(), len)?;
    let unmap = flags & RangeEntry::UNMAP != 0;
    // 5.2.6.2: flags that the device does not know, and UNMAP with a discard.
    let known = if kind == RequestKind::Discard { 0 } else { RangeEntry::UNMAP };
    if flags & !known != 0 {
        return Err(Status::Unsupported);
    }
    Ok(match kind {
        RequestKind::Discard => (DiskOperation::Discard { offset }, len),
        _ => (DiskOperation::WriteZeroes { offset, unmap }, len),
    })
}

impl DiskLimits {
    /// The first byte of `len` bytes from `sector` on, if they are whole sectors of the disk.
    fn check(self, sector: u64, len: u64) -> Result<u64, Status> {
        let fits = len.is_multiple_of(SECTOR)
            && sector.checked_add(len / SECTOR).is_some_and(|end| end <= self.sectors);
        if fits { Ok(sector * SECTOR) } else { Err(Status::IoErr) }
    }

    fn check_writable(self) -> Result<(), Status> {
        if self.read_only { Err(Status::IoErr) } else { Ok(()) }
    }
}
