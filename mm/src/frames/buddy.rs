// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The buddy allocator: free units of orders 0 to 10, by migrate type. Pure bookkeeping over the
//! frame table; the caller holds the zone lock.
//!
//! Invariants, checked by `validate.rs`:
//! - a free unit is aligned to its order and on the list of its order and of its blocks' type;
//! - all blocks that a free unit covers have one type;
//! - two free buddies of one order are never both on lists unless their blocks may not merge.

use super::ids::{BLOCK_FRAMES, BLOCK_ORDER, FrameBlock, FrameId, FrameRange, NR_ORDERS, Order};
use super::page::{FrameKind, FrameTable, NONE, Word};
use super::pageblock::{BlockTypes, MigrateType, Mobility, NR_TYPES};

#[derive(Clone, Copy)]
struct List {
    head: u32,
    count: u32,
}

impl List {
    const EMPTY: Self = Self { head: NONE, count: 0 };
}

/// Free lists and their counts.
pub(super) struct Buddy {
    lists: [[List; NR_ORDERS]; NR_TYPES],
    /// For each type a bit for each order with a non-empty list.
    occupied: [u16; NR_TYPES],
    free: [u32; NR_TYPES],
}

/// The frame table and the block types, which are always needed together.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) frames: &'a FrameTable,
    pub(super) blocks: &'a BlockTypes,
}

impl Tables<'_> {
    /// The head of the free or allocated unit that `frame` lies in, or `frame` itself.
    pub(super) fn covering_head(self, frame: FrameId) -> FrameId {
        for order in Order::all() {
            let head = frame.align_down(order);
            let word = self.frames.meta(head).load();
            if matches!(word.kind(), FrameKind::Buddy | FrameKind::Used)
                && frame.index() - head.index() < word.order().frames()
            {
                return head;
            }
        }
        frame
    }
}

impl Buddy {
    pub(super) fn new() -> Self {
        Self {
            lists: [[List::EMPTY; NR_ORDERS]; NR_TYPES],
            occupied: [0; NR_TYPES],
            free: [0; NR_TYPES],
        }
    }

    /// Free frames on lists of one type.
    pub(super) fn free_of(&self, of: MigrateType) -> u32 {
        self.free[of.as_usize()]
    }

    /// Free frames that can be allocated: all but those of isolated blocks.
    pub(super) fn free_usable(&self) -> u32 {
        self.free.iter().sum::<u32>() - self.free_of(MigrateType::Isolate)
    }

    /// Units on the list of one type and order.
    pub(super) fn count(&self, of: MigrateType, order: Order) -> u32 {
        self.lists[of.as_usize()][order.as_usize()].count
    }

    /// Whether a unit of at least `order` is on a list of one type.
    pub(super) fn has(&self, of: MigrateType, order: Order) -> bool {
        self.occupied[of.as_usize()] >> order.get() != 0
    }

    /// Whether [`alloc`](Self::alloc) would succeed.
    pub(super) fn can_alloc(&self, order: Order, mobility: Mobility) -> bool {
        self.has(mobility.migrate_type(), order)
            || (mobility.may_use_cma() && self.has(MigrateType::Cma, order))
            || mobility.fallbacks().iter().any(|&f| self.has(f, order))
    }

    fn link(&mut self, t: Tables<'_>, frame: FrameId, order: Order, to: MigrateType) {
        let list = &mut self.lists[to.as_usize()][order.as_usize()];
        let meta = t.frames.meta(frame);
        meta.set_prev(NONE);
        meta.set_next(list.head);
        if list.head != NONE {
            t.frames.meta(FrameId::new(list.head)).set_prev(frame.index());
        }
        list.head = frame.index();
        list.count += 1;
        self.occupied[to.as_usize()] |= 1 << order.get();
        self.free[to.as_usize()] += order.frames();
    }

    fn unlink(&mut self, t: Tables<'_>, frame: FrameId, order: Order, from: MigrateType) {
        let list = &mut self.lists[from.as_usize()][order.as_usize()];
        let meta = t.frames.meta(frame);
        let (next, prev) = (meta.next(), meta.prev());
        if next != NONE {
            t.frames.meta(FrameId::new(next)).set_prev(prev);
        }
        if prev == NONE {
            debug_assert_eq!(list.head, frame.index());
            list.head = next;
        } else {
            t.frames.meta(FrameId::new(prev)).set_next(next);
        }
        list.count -= 1;
        if list.head == NONE {
            self.occupied[from.as_usize()] &= !(1 << order.get());
        }
        self.free[from.as_usize()] -= order.frames();
    }

    fn insert(&mut self, t: Tables<'_>, frame: FrameId, order: Order, to: MigrateType) {
        t.frames.meta(frame).store(Word::of(FrameKind::Buddy, order));
        self.link(t, frame, order, to);
    }

    /// Takes a unit off its list; its head becomes a tail until the caller says otherwise.
    pub(super) fn remove(&mut self, t: Tables<'_>, frame: FrameId) -> Order {
        let word = t.frames.meta(frame).load();
        debug_assert_eq!(word.kind(), FrameKind::Buddy);
        self.unlink(t, frame, word.order(), t.blocks.type_at(frame));
        t.frames.meta(frame).store(Word::of(FrameKind::Tail, Order::ZERO));
        word.order()
    }

    /// Frees a unit and merges it with its buddies while they are free and mergeable.
    pub(super) fn free(&mut self, t: Tables<'_>, frame: FrameId, order: Order) {
        let of = t.blocks.type_at(frame);
        if order > Order::BLOCK && blocks_of(frame, order).any(|b| t.blocks.type_of(b) != of) {
            for block in blocks_of(frame, order) {
                self.free(t, block.first(), Order::BLOCK);
            }
            return;
        }
        let (mut head, mut order) = (frame, order);
        while let Some(up) = order.up() {
            let buddy = head.buddy(order);
            let Some(meta) = t.frames.get(buddy) else { break };
            let word = meta.load();
            if word.kind() != FrameKind::Buddy || word.order() != order {
                break;
            }
            if order.get() >= BLOCK_ORDER {
                let theirs = t.blocks.type_at(buddy);
                if theirs != of && !(theirs.is_mergeable() && of.is_mergeable()) {
                    break;
                }
            }
            self.remove(t, buddy);
            if order.get() >= BLOCK_ORDER {
                // Each list holds one type, so a later split puts both halves on the right list.
                t.blocks.set_type(buddy.block(), of);
            }
            t.frames.meta(head).store(Word::of(FrameKind::Tail, Order::ZERO));
            head = head.align_down(up);
            order = up;
        }
        self.insert(t, head, order, of);
    }

    /// Frees a run of frames as the largest aligned units it holds.
    pub(super) fn free_range(&mut self, t: Tables<'_>, range: FrameRange) {
        let mut at = range.start;
        while at < range.end {
            let order = Order::largest_at(at, range.end.index() - at.index());
            // A unit never spans blocks of different types, so large ones go in block by block.
            let order = order.min(Order::BLOCK);
            self.free(t, at, order);
            at = at.offset(order.frames());
        }
    }

    /// Puts the upper halves of a unit back until it has the order wanted.
    fn expand(&mut self, t: Tables<'_>, head: FrameId, have: Order, want: Order, of: MigrateType) {
        let mut order = have;
        while order > want {
            order = order.down();
            self.insert(t, head.offset(order.frames()), order, of);
        }
    }

    fn take(&mut self, t: Tables<'_>, order: Order, of: MigrateType) -> Option<FrameId> {
        let above = self.occupied[of.as_usize()] >> order.get();
        if above == 0 {
            return None;
        }
        // At most 15 zeros in a non-zero u16.
        let have = Order::from_bits(order.get() + above.trailing_zeros() as u8);
        let head = FrameId::new(self.lists[of.as_usize()][have.as_usize()].head);
        self.remove(t, head);
        self.expand(t, head, have, order, of);
        Some(head)
    }

    /// Allocates a unit. The head is left as a tail word; the caller marks it.
    pub(super) fn alloc(
        &mut self,
        t: Tables<'_>,
        order: Order,
        mobility: Mobility,
    ) -> Option<FrameId> {
        let own = mobility.migrate_type();
        // Use CMA memory first while it is more than half of free memory, so that both kinds run
        // out together and the last free frames are not all in CMA.
        let cma = mobility.may_use_cma();
        if cma
            && self.free_of(MigrateType::Cma) > self.free_usable() / 2
            && let Some(frame) = self.take(t, order, MigrateType::Cma)
        {
            return Some(frame);
        }
        if let Some(frame) = self.take(t, order, own) {
            return Some(frame);
        }
        if cma && let Some(frame) = self.take(t, order, MigrateType::Cma) {
            return Some(frame);
        }
        self.fall_back(t, order, mobility)
    }

    /// Takes a unit from another type's blocks, and the whole block where that serves grouping.
    fn fall_back(&mut self, t: Tables<'_>, order: Order, mobility: Mobility) -> Option<FrameId> {
        let own = mobility.migrate_type();
        // From the largest unit down: the larger the unit, the emptier its block.
        for have in order.and_above().rev() {
            let Some(from) = self.fallback_at(have, mobility) else { continue };
            if !mobility.claims_block(have) {
                // Too small to claim a block: take from the smallest unit instead and break no larger one.
                let small = order.and_above().find(|&o| self.fallback_at(o, mobility).is_some())?;
                let from = self.fallback_at(small, mobility)?;
                return self.take(t, order, from);
            }
            let head = FrameId::new(self.lists[from.as_usize()][have.as_usize()].head);
            if have.get() >= BLOCK_ORDER {
                self.remove(t, head);
                for block in blocks_of(head, have) {
                    t.blocks.set_type(block, own);
                }
                self.expand(t, head, have, order, own);
                return Some(head);
            }
            if self.claim_block(t, head.block(), mobility) {
                return self.take(t, order, own);
            }
            self.remove(t, head);
            self.expand(t, head, have, order, from);
            return Some(head);
        }
        None
    }

    fn fallback_at(&self, order: Order, mobility: Mobility) -> Option<MigrateType> {
        mobility.fallbacks().into_iter().find(|&f| self.count(f, order) > 0)
    }

    /// Gives a block to another type if at least half of it is free or already of that kind.
    fn claim_block(&mut self, t: Tables<'_>, block: FrameBlock, mobility: Mobility) -> bool {
        let old = t.blocks.type_of(block);
        let usage = block_usage(t, block);
        let alike = match (mobility, old) {
            (Mobility::Movable, _) => usage.movable,
            (_, MigrateType::Movable) => usage.fixed,
            // Unmovable and reclaimable frames cannot be told apart, so none counts as the same
            // kind.
            _ => 0,
        };
        if usage.free + alike < BLOCK_FRAMES / 2 {
            return false;
        }
        self.retype_block(t, block, mobility.migrate_type());
        true
    }

    /// Changes a block's type and moves its free units to that type's lists. A unit that reaches
    /// beyond the block is split first.
    pub(super) fn retype_block(&mut self, t: Tables<'_>, block: FrameBlock, to: MigrateType) {
        let from = t.blocks.type_of(block);
        self.split_at_block(t, block);
        let mut at = block.first();
        while at < block.end() && at.index() < t.frames.len() {
            let word = t.frames.meta(at).load();
            if word.kind() == FrameKind::Buddy {
                self.unlink(t, at, word.order(), from);
                self.link(t, at, word.order(), to);
                at = at.offset(word.order().frames());
            } else {
                at = at.offset(1);
            }
        }
        t.blocks.set_type(block, to);
    }

    /// Splits a free unit larger than a block that covers this one into blocks.
    fn split_at_block(&mut self, t: Tables<'_>, block: FrameBlock) {
        let head = block.first().align_down(Order::MAX);
        let word = t.frames.meta(head).load();
        if word.kind() != FrameKind::Buddy || word.order() != Order::MAX {
            return;
        }
        let of = t.blocks.type_at(head);
        self.remove(t, head);
        for block in blocks_of(head, Order::MAX) {
            self.insert(t, block.first(), Order::BLOCK, of);
        }
    }

    /// Merges the free units of a block with their neighbours again after its type changed.
    pub(super) fn remerge_block(&mut self, t: Tables<'_>, block: FrameBlock) {
        let word = t.frames.meta(block.first()).load();
        if word.kind() == FrameKind::Buddy && word.order() == Order::BLOCK {
            self.remove(t, block.first());
            self.free(t, block.first(), Order::BLOCK);
        }
    }

    /// Heads of the units on one list, for `validate`.
    pub(super) fn heads<'a>(
        &self,
        t: Tables<'a>,
        of: MigrateType,
        order: Order,
    ) -> impl Iterator<Item = FrameId> + use<'a> {
        let mut at = self.lists[of.as_usize()][order.as_usize()].head;
        std::iter::from_fn(move || {
            let frame = (at != NONE).then(|| FrameId::new(at))?;
            at = t.frames.meta(frame).next();
            Some(frame)
        })
    }
}

/// The blocks under a unit of at least block order.
fn blocks_of(head: FrameId, order: Order) -> impl Iterator<Item = FrameBlock> {
    let first = head.block().index();
    (first..first + (order.frames() >> BLOCK_ORDER)).map(FrameBlock::new)
}

/// How the frames of a block are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockUsage {
    /// On free lists.
    pub(super) free: u32,
    /// Allocated and movable.
    pub(super) movable: u32,
    /// Everything else.
    pub(super) fixed: u32,
}

pub(super) fn block_usage(t: Tables<'_>, block: FrameBlock) -> BlockUsage {
    let mut usage = BlockUsage::default();
    let mut at = block.first();
    let end = block.end().index().min(t.frames.len());
    while at.index() < end {
        let word = t.frames.meta(at).load();
        let len = word.order().frames().min(end - at.index());
        let step = match word.kind() {
            FrameKind::Buddy => {
                usage.free += len;
                len
            }
            FrameKind::Used if word.is_movable() => {
                usage.movable += 1;
                1
            }
            FrameKind::Used => {
                usage.fixed += len;
                len
            }
            // In a cache or held by compaction: effectively free.
            FrameKind::Cached | FrameKind::Held => {
                usage.free += 1;
                1
            }
            FrameKind::Tail => {
                usage.fixed += 1;
                1
            }
        };
        at = at.offset(step);
    }
    usage
}
