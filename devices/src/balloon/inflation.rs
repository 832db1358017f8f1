// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queues that change what is in the balloon: pages in, pages out, and blocks both ways.

use mm::units::{BlockId, GuestRange, PAGES_PER_BLOCK, Pages};
use zerocopy::FromBytes;

use super::device::Balloon;
use super::pages::merge;
use super::protocol::{BLOCK_MAX, BlocksHeader, BlocksOp, BlocksStatus, decode_block, decode_pfn};
use crate::virtio::{ChainError, GuestMemory, Segments};

/// Most page numbers in one buffer. Linux sends 256.
const MAX_PFNS: usize = 4096;
/// Bytes of one page number on the wire.
const PFN_BYTES: usize = 4;
/// Bytes of one block number on the wire.
const BLOCK_BYTES: usize = 8;

/// One page or one block that went into the balloon by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    Page,
    Block,
}

impl Balloon {
    /// Pages into the balloon. Returns with everything given back that need not wait.
    pub(super) fn inflate(&mut self, mem: &GuestMemory, buffer: Result<Segments, ChainError>) {
        self.pool.counters.inflate_count += 1;
        let Some(pfns) = self.read_pfns(mem, buffer) else { return };
        let before = self.pool.ledger.ballooned();
        let mut new = 0;
        let pool = &mut self.pool;
        let named = self.scratch.len();
        let dropped = merge(&mut self.scratch, |run| new += pool.inflate(run).0);
        pool.counters.refused_pages += dropped;
        pool.settle_inflate();
        self.moved_in = (named == 1 && new == 1).then_some(Moved::Page);
        debug_assert_eq!(named, pfns);
        self.check_target(before);
    }

    /// Pages out of the balloon: from here on they are never discarded.
    pub(super) fn deflate(&mut self, mem: &GuestMemory, buffer: Result<Segments, ChainError>) {
        self.pool.counters.deflate_count += 1;
        let Some(pfns) = self.read_pfns(mem, buffer) else { return };
        let mut gone = 0;
        let pool = &mut self.pool;
        let dropped = merge(&mut self.scratch, |run| gone += pool.deflate(run).0);
        pool.counters.refused_pages += dropped;
        pool.settle_deflate();
        if pfns == 1 && gone == 1 && self.moved_in.take() == Some(Moved::Page) {
            pool.counters.migrated_pages += 1;
        }
        self.moved_in = None;
    }

    /// Reads the page numbers of `buffer` into `scratch`; returns how many there are.
    fn read_pfns(
        &mut self,
        mem: &GuestMemory,
        buffer: Result<Segments, ChainError>,
    ) -> Option<usize> {
        let buffer = self.usable(buffer)?;
        if buffer.readable_len() > (MAX_PFNS * PFN_BYTES) as u64 {
            self.bad_buffer(&"more page numbers than one buffer may have");
            return None;
        }
        self.scratch.clear();
        let mut raw = [0; 256 * PFN_BYTES];
        let mut offset = 0;
        loop {
            let len = buffer.read(mem, offset, &mut raw);
            let (pfns, _cut_off) = raw[..len].as_chunks::<PFN_BYTES>();
            self.scratch.extend(pfns.iter().copied().map(decode_pfn));
            offset += len as u64;
            if len < raw.len() {
                return Some(self.scratch.len());
            }
        }
    }

    /// The guest has given all that it was asked for by what it gave just now.
    ///
    /// Not so for a migration: its page is one more, until the other half comes.
    fn check_target(&mut self, before: Pages) {
        let goal = self.goal();
        if before < goal && self.pool.ledger.ballooned() >= goal {
            self.pool.hurry();
        }
    }

    /// A request on the block queue; returns the bytes written.
    pub(super) fn blocks(
        &mut self,
        mem: &GuestMemory,
        buffer: Result<Segments, ChainError>,
    ) -> u32 {
        let Some(buffer) = self.usable(buffer) else { return 0 };
        let room = size_of::<BlocksStatus>();
        if buffer.writable_len() < room as u64 {
            self.bad_buffer(&"block request without room for its status");
            return 0;
        }
        let status = self.block_request(mem, &buffer);
        if status == BlocksStatus::Ok {
            self.pool.counters.block_requests += 1;
        } else {
            self.pool.counters.block_refusals += 1;
            if let Some(suppressed) = self.log.admit() {
                tracing::warn!(suppressed, ?status, "balloon: block request refused");
            }
        }
        u32::try_from(buffer.write(mem, 0, &status.to_le_bytes())).unwrap_or(0)
    }

    fn block_request(&mut self, mem: &GuestMemory, buffer: &Segments) -> BlocksStatus {
        let mut raw = [0; size_of::<BlocksHeader>()];
        let got = buffer.read(mem, 0, &mut raw);
        let Ok(header) = BlocksHeader::read_from_bytes(&raw[..got]) else {
            return BlocksStatus::BadRequest;
        };
        let count = header.count.get();
        let op = BlocksOp::from(header.op.get());
        if count == 0 || count > BLOCK_MAX || matches!(op, BlocksOp::Unsupported(_)) {
            return BlocksStatus::BadRequest;
        }
        let mut entries = [0; BLOCK_MAX as usize * BLOCK_BYTES];
        let entries = &mut entries[..count as usize * BLOCK_BYTES];
        if buffer.read(mem, raw.len() as u64, entries) < entries.len() {
            return BlocksStatus::BadRequest;
        }
        let Some(blocks) = self.check_blocks(entries.as_chunks().0) else {
            return BlocksStatus::BadBlock;
        };
        let wanted = match op {
            BlocksOp::Inflate => 0,
            _ => PAGES_PER_BLOCK,
        };
        if blocks.iter().any(|(_, range)| self.pool.ledger.count(*range) != Pages(wanted)) {
            return BlocksStatus::BadState;
        }
        let before = self.pool.ledger.ballooned();
        let lone = blocks.len() == 1;
        if op == BlocksOp::Inflate {
            self.pool.inflate_blocks(&blocks);
            for (block, range) in &blocks {
                // Given up because we asked: on top of the target, or it would come right back.
                if self.evacuations.asks_for(*block) {
                    self.raise_surplus(range.pages());
                }
            }
            self.moved_in = lone.then_some(Moved::Block);
            self.check_target(before);
        } else {
            self.pool.deflate_blocks(&blocks);
            if self.moved_in.take() == Some(Moved::Block) && lone {
                self.pool.counters.migrated_blocks += 1;
            }
        }
        BlocksStatus::Ok
    }

    /// The blocks that `entries` name, ascending; `None` if any is no block of RAM or there twice.
    fn check_blocks(&self, entries: &[[u8; BLOCK_BYTES]]) -> Option<Vec<(BlockId, GuestRange)>> {
        let mut blocks = Vec::with_capacity(entries.len());
        for entry in entries {
            let block = decode_block(*entry)?;
            let range = block.checked_range()?;
            if !self.pool.ledger.is_ram(range) {
                return None;
            }
            blocks.push((block, range));
        }
        blocks.sort_unstable();
        let twice = blocks.windows(2).any(|pair| pair[0] == pair[1]);
        (!twice).then_some(blocks)
    }

    /// Raises what the driver is to reach, without a word to it: never above all of RAM.
    fn raise_surplus(&mut self, by: Pages) {
        let target = self.target_pages();
        let surplus = Pages(self.surplus.0.saturating_add(by.0));
        let goal = target.0.saturating_add(surplus.0).min(self.pool.ledger.ram().0);
        if let Ok(goal) = u32::try_from(goal) {
            self.config.num_pages = goal.into();
            self.surplus = Pages(u64::from(goal) - target.0);
        }
    }
}
