// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the benches share: a seeded generator, data like that which zram stores, an owner of
//! frames like a GPU driver, and frames that cannot move.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "each bench uses a part of it")]

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

use mm::frames::{
    AllocError, FrameId, FramePool, FrameRange, Frames, Gfp, LockedFrame, MigrateError,
    MigrateMode, MovableOps, Order, Owner, PoolConfig, Region, TargetFrame,
};
use mm::units::{BLOCK_BYTES, PAGE_BYTES};

/// xorshift64*.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }
}

/// A pool of `blocks` blocks, of which the first `cma` are a CMA area, its memory present.
pub fn pool(blocks: usize, cma: u32) -> Arc<FramePool> {
    let region = Region::anonymous(blocks * BLOCK_BYTES).expect("memory for the pool");
    let area = FrameRange::new(FrameId::new(0), cma * 512);
    let config = PoolConfig { cma: area.into_iter().collect(), ..Default::default() };
    let pool = FramePool::new(region, config).expect("a pool");
    // Touch every frame once, so that no page fault is measured later.
    let mut all = Vec::new();
    while let Ok(mut frames) = pool.alloc(Order::MAX, Gfp::MOVABLE.emergency()) {
        pool.bytes_mut(&mut frames).fill(0xa5);
        all.push(frames);
    }
    all.into_iter().for_each(|frames| pool.free(frames).expect("of this pool"));
    pool
}

/// Sizes of compressed pages as they come: many small, a hump near half a page, some raw.
pub fn compressed_size(rng: &mut Rng) -> usize {
    match rng.below(100) {
        0..10 => 40 + rng.below(200),
        10..35 => 300 + rng.below(900),
        35..80 => 1000 + rng.below(1400),
        80..92 => 2200 + rng.below(1400),
        _ => PAGE_BYTES,
    }
}

/// A page like those of programs: words of text, tables of pointers and counters, zeroes, noise.
pub fn page(rng: &mut Rng) -> [u8; PAGE_BYTES] {
    const WORDS: [&str; 16] = [
        "the ", "memory ", "of ", "a ", "guest ", "page ", "is ", "moved ", "while ", "it ", "in ",
        "use ", "and ", "no one ", "notices ", "that. ",
    ];
    let mut page = [0u8; PAGE_BYTES];
    let mut at = 0;
    while at < PAGE_BYTES {
        let run = (64 + rng.below(512)).min(PAGE_BYTES - at);
        let part = &mut page[at..at + run];
        match rng.below(10) {
            0..4 => {
                let mut to = 0;
                while to < run {
                    let word = WORDS[rng.below(16)].as_bytes();
                    let len = word.len().min(run - to);
                    part[to..to + len].copy_from_slice(&word[..len]);
                    to += len;
                }
            }
            4..7 => {
                let base = 0x7f00_0000_0000u64 | (rng.next() & 0xffff_f000);
                for (i, slot) in part.chunks_exact_mut(16).enumerate() {
                    slot[..8].copy_from_slice(&(base + (rng.next() & 0xfff0)).to_le_bytes());
                    slot[8..].copy_from_slice(&(i as u64).to_le_bytes());
                }
            }
            7 => {}
            _ => part.iter_mut().for_each(|b| *b = rng.next() as u8),
        }
        at += run;
    }
    page
}

/// Buffers of single frames, like a GPU driver's; each frame's word is its place in the table.
pub struct Buffers {
    owner: OnceLock<Owner>,
    table: Vec<AtomicU32>,
}

const NONE: u32 = u32::MAX;

impl Buffers {
    pub fn new(pool: &Arc<FramePool>) -> Arc<Self> {
        let table = (0..pool.frame_count()).map(|_| AtomicU32::new(NONE)).collect();
        let buffers = Arc::new(Self { owner: OnceLock::new(), table });
        let weak: Weak<Self> = Arc::downgrade(&buffers);
        let owner = Owner::register(pool, weak).expect("a place for an owner");
        assert!(buffers.owner.set(owner).is_ok());
        buffers
    }

    fn owner(&self) -> &Owner {
        self.owner.get().expect("set when made")
    }

    pub fn alloc(&self, place: u32, gfp: Gfp) -> Result<(), AllocError> {
        let frame = self.owner().alloc(gfp, place)?;
        self.table[place as usize].store(frame.index(), Relaxed);
        Ok(())
    }

    pub fn free(&self, place: u32) {
        let frame = self.table[place as usize].swap(NONE, Relaxed);
        self.owner().free(FrameId::new(frame)).expect("ours");
    }
}

impl MovableOps for Buffers {
    fn isolate(&self, _: &LockedFrame<'_>, _: MigrateMode) -> bool {
        true
    }

    fn migrate(
        &self,
        dst: &mut TargetFrame<'_>,
        src: &mut LockedFrame<'_>,
        _: MigrateMode,
    ) -> Result<(), MigrateError> {
        let place = &self.table[src.private() as usize];
        dst.take_over(src)?;
        place.store(dst.id().index(), Relaxed);
        Ok(())
    }

    fn putback(&self, _: &LockedFrame<'_>) {}
}

/// A stock of single frames, movable or not, by place.
pub enum Stock {
    Movable(Arc<Buffers>),
    Fixed(Arc<FramePool>, Vec<Option<Frames>>),
}

impl Stock {
    pub fn new(pool: &Arc<FramePool>, movable: bool) -> Self {
        if movable {
            return Self::Movable(Buffers::new(pool));
        }
        Self::Fixed(Arc::clone(pool), (0..pool.frame_count()).map(|_| None).collect())
    }

    pub fn alloc(&mut self, place: u32) -> Result<(), AllocError> {
        match self {
            Self::Movable(buffers) => buffers.alloc(place, Gfp::MOVABLE),
            Self::Fixed(pool, table) => {
                table[place as usize] = Some(pool.alloc(Order::ZERO, Gfp::UNMOVABLE)?);
                Ok(())
            }
        }
    }

    pub fn free(&mut self, place: u32) {
        match self {
            Self::Movable(buffers) => buffers.free(place),
            Self::Fixed(pool, table) => {
                let frames = table[place as usize].take().expect("allocated");
                pool.free(frames).expect("of this pool");
            }
        }
    }
}
