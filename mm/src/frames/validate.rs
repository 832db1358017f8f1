// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Recounts everything from the frames' own words and compares it with the fast counters.

use super::ids::{BLOCK_ORDER, FrameId, Order};
use super::page::Kind;
use super::pageblock::MigrateType;
use super::pool::FramePool;
use super::stats::Accounting;

/// What [`FramePool::validate`] found wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pool is inconsistent: {0}")]
pub struct Inconsistent(String);

macro_rules! check {
    ($ok:expr, $($what:tt)*) => {
        if !$ok { return Err(Inconsistent(format!($($what)*))); }
    };
}

impl FramePool {
    /// Checks every list, every frame and every counter against each other, and returns the
    /// accounting. To be called while nobody is compacting or allocating contiguous memory; a
    /// tool for tests and for looking into trouble, linear in the size of the pool.
    ///
    /// # Errors
    /// [`Inconsistent`], naming the first thing that is wrong.
    pub fn validate(&self) -> Result<Accounting, Inconsistent> {
        let accounting = self.accounting();
        check!(accounting.adds_up(), "{accounting:?} does not add up");
        self.check_lists()?;
        let seen = self.recount()?;
        check!(
            seen.free == accounting.free
                && seen.used == accounting.used
                && seen.isolated == accounting.isolated
                && seen.cached == accounting.cached
                && seen.free_cma == accounting.free_cma,
            "counted {seen:?}, kept {accounting:?}"
        );
        Ok(accounting)
    }

    fn check_lists(&self) -> Result<(), Inconsistent> {
        let zone = self.zone();
        let t = self.tables();
        for of in MigrateType::ALL {
            let mut frames = 0;
            for order in Order::all() {
                let mut units = 0;
                for head in zone.buddy.heads(t, of, order) {
                    let word = t.frames.meta(head).load();
                    check!(
                        word.kind() == Kind::Buddy && word.order() == order,
                        "{head:?} on the list of order {order} is {:?} of order {}",
                        word.kind(),
                        word.order()
                    );
                    check!(head.is_aligned(order), "{head:?} is not aligned to order {order}");
                    check!(
                        head.index() + order.frames() <= t.frames.len(),
                        "{head:?} of order {order} reaches out of the pool"
                    );
                    for frame in 0..order.frames().div_ceil(1 << BLOCK_ORDER) {
                        let at = head.offset(frame << BLOCK_ORDER);
                        let block_type = t.blocks.type_at(at);
                        check!(block_type == of, "{head:?} on {of:?}, its block {block_type:?}");
                    }
                    self.check_unmerged(head, order, of)?;
                    units += 1;
                    check!(units <= t.frames.len(), "the list of order {order} is a ring");
                }
                let counted = zone.buddy.count(of, order);
                check!(units == counted, "{units} units of order {order}, {counted} counted");
                frames += units << order.get();
            }
            let counted = zone.buddy.free_of(of);
            check!(frames == counted, "{frames} frames free of {of:?}, {counted} counted");
        }
        Ok(())
    }

    /// A free unit's buddy must not be free at the same order, unless the two may not merge.
    fn check_unmerged(
        &self,
        head: FrameId,
        order: Order,
        of: MigrateType,
    ) -> Result<(), Inconsistent> {
        if order == Order::MAX {
            return Ok(());
        }
        let buddy = head.buddy(order);
        let Some(meta) = self.get_meta(buddy) else { return Ok(()) };
        let word = meta.load();
        let theirs = self.blocks.type_at(buddy);
        let may_merge = theirs == of || (theirs.is_mergeable() && of.is_mergeable());
        check!(
            !(word.kind() == Kind::Buddy && word.order() == order && may_merge),
            "{head:?} and {buddy:?} are both free at order {order}"
        );
        Ok(())
    }

    /// Walks all frames, unit by unit.
    fn recount(&self) -> Result<Accounting, Inconsistent> {
        let mut seen = Accounting { total: self.frame_count(), ..Accounting::default() };
        let mut at = FrameId::new(0);
        while at.index() < self.frame_count() {
            let word = self.meta(at).load();
            let block_type = self.blocks.type_at(at);
            let frames = match word.kind() {
                Kind::Buddy | Kind::Used => word.order().frames(),
                Kind::Cached | Kind::Held => 1,
                Kind::Tail => return Err(Inconsistent(format!("{at:?} belongs to no unit"))),
            };
            for inside in 1..frames {
                let kind = self.meta(at.offset(inside)).load().kind();
                check!(kind == Kind::Tail, "{:?} inside a unit is {kind:?}", at.offset(inside));
            }
            match word.kind() {
                Kind::Buddy if block_type == MigrateType::Isolate => seen.isolated += frames,
                Kind::Buddy => {
                    seen.free += frames;
                    if block_type == MigrateType::Cma {
                        seen.free_cma += frames;
                    }
                }
                Kind::Cached => {
                    seen.free += 1;
                    seen.cached += 1;
                }
                Kind::Held => seen.isolated += 1,
                Kind::Used if word.is_isolated() => seen.isolated += frames,
                Kind::Used | Kind::Tail => {
                    check!(word.refs() > 0, "{at:?} is allocated with no reference");
                    seen.used += frames;
                }
            }
            at = at.offset(frames);
        }
        Ok(seen)
    }
}
