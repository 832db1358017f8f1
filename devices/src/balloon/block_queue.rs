// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queue of whole blocks, into the balloon and out of it.

use mm::units::{BlockId, GuestRange, PAGES_PER_BLOCK, Pages, SaturatingInto};
use zerocopy::FromBytes;

use super::balloon_core::BalloonCore;
use super::ledger::Ledger;
use super::migrations::Single;
use super::protocol::{BLOCK_MAX, BlocksHeader, BlocksOp, BlocksStatus, decode_block};
use super::work::Work;
use crate::virtio::{Deadline, GuestMemoryMmap, Segments};

/// Bytes of one block number on the wire.
const BLOCK_BYTES: usize = 8;

/// A request that the device accepts: its operation, and its blocks (ascending).
struct BlockRequest {
    op: BlocksOp,
    blocks: Vec<(BlockId, GuestRange)>,
}

/// Handles a request; returns the remaining work, and the bytes written to the buffer.
/// `inflated` is called with the blocks that went in.
pub(super) fn handle(
    core: &mut BalloonCore,
    mem: &GuestMemoryMmap,
    buffer: &Segments,
    deadline: &mut Deadline,
    inflated: impl FnOnce(&mut BalloonCore, &[(BlockId, GuestRange)]),
) -> (Work, u32) {
    if buffer.writable_len() < size_of::<BlocksStatus>() as u64 {
        core.journal.bad_buffer("block request without room for its status");
        return (Work::default(), 0);
    }
    let (status, work) = match read(&core.pool.ledger, mem, buffer) {
        Ok(request) => {
            deadline.charge(request.blocks.len() as u64 * Deadline::ENTRY);
            core.journal.counters.block_requests += 1;
            (BlocksStatus::Ok, carry_out(core, &request, inflated))
        }
        Err(status) => {
            core.journal.counters.block_refusals += 1;
            core.journal.warn(format_args!("block request rejected: {status:?}"));
            (status, Work::default())
        }
    };
    let written = buffer.write(mem, 0, &status.to_le_bytes());
    (work, written.saturating_u32())
}

fn read(
    ledger: &Ledger,
    mem: &GuestMemoryMmap,
    buffer: &Segments,
) -> Result<BlockRequest, BlocksStatus> {
    let mut raw = [0; size_of::<BlocksHeader>()];
    let got = buffer.read(mem, 0, &mut raw);
    let header =
        BlocksHeader::read_from_bytes(&raw[..got]).map_err(|_| BlocksStatus::BadRequest)?;
    let count = header.count.get();
    let op = BlocksOp::from(header.op.get());
    if count == 0 || count > BLOCK_MAX || matches!(op, BlocksOp::Unsupported(_)) {
        return Err(BlocksStatus::BadRequest);
    }
    let mut entries = [0; BLOCK_MAX as usize * BLOCK_BYTES];
    let entries = &mut entries[..count as usize * BLOCK_BYTES];
    if buffer.read(mem, raw.len() as u64, entries) < entries.len() {
        return Err(BlocksStatus::BadRequest);
    }
    let blocks = check(ledger, entries.as_chunks().0).ok_or(BlocksStatus::BadBlock)?;
    let before = match op {
        BlocksOp::Inflate => Pages(0),
        _ => Pages(PAGES_PER_BLOCK),
    };
    match blocks.iter().all(|(_, range)| ledger.count(*range) == before) {
        true => Ok(BlockRequest { op, blocks }),
        false => Err(BlocksStatus::BadState),
    }
}

/// The blocks that `entries` name, ascending; `None` if any is no block of RAM or there twice.
fn check(ledger: &Ledger, entries: &[[u8; BLOCK_BYTES]]) -> Option<Vec<(BlockId, GuestRange)>> {
    let mut blocks = Vec::with_capacity(entries.len());
    for entry in entries {
        let block = decode_block(*entry)?;
        let range = block.checked_range()?;
        if !ledger.is_ram(range) {
            return None;
        }
        blocks.push((block, range));
    }
    blocks.sort_unstable();
    let twice = blocks.windows(2).any(|pair| pair[0] == pair[1]);
    (!twice).then_some(blocks)
}

fn carry_out(
    core: &mut BalloonCore,
    request: &BlockRequest,
    inflated: impl FnOnce(&mut BalloonCore, &[(BlockId, GuestRange)]),
) -> Work {
    let blocks = &request.blocks;
    let single = (blocks.len() == 1).then_some(Single::Block);
    let ids = blocks.iter().map(|(block, _)| *block);
    if request.op == BlocksOp::Inflate {
        let before = core.pool.ledger.ballooned();
        core.pool.inflate_blocks(blocks, &mut core.journal);
        inflated(core, blocks);
        core.migrations.note_in(single);
        core.check_goal(before);
        Work::discard(ids)
    } else {
        core.pool.deflate_blocks(blocks, &mut core.journal);
        if core.migrations.note_out(single) {
            core.journal.counters.migrated_blocks += 1;
        }
        Work::release(blocks.iter().map(|(_, range)| *range), ids)
    }
}
