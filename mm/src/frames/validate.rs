// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Recounts everything from the frames' own words and compares it with the fast counters.

use super::account::{Accounting, accounting};
use super::ids::{BLOCK_ORDER, FrameId, Order};
use super::page::FrameKind;
use super::pageblock::MigrateType;
use super::pool_core::PoolCore;

/// What [`FramePool::validate`](super::FramePool::validate) found wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pool is inconsistent: {0}")]
pub struct Inconsistent(String);

macro_rules! check {
    ($ok:expr, $($what:tt)*) => {
        if !$ok { return Err(Inconsistent(format!($($what)*))); }
    };
}

pub(super) fn validate(core: &PoolCore) -> Result<Accounting, Inconsistent> {
    let accounting = accounting(core);
    check!(accounting.adds_up(), "{accounting:?} does not add up");
    check_lists(core)?;
    let seen = recount(core)?;
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

fn check_lists(core: &PoolCore) -> Result<(), Inconsistent> {
    let zone = core.zone();
    let t = core.tables();
    for of in MigrateType::ALL {
        let mut frames = 0;
        for order in Order::all() {
            let mut units = 0;
            for head in zone.buddy().heads(t, of, order) {
                let word = t.frames.meta(head).load();
                check!(
                    word.kind() == FrameKind::Buddy && word.order() == order,
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
                check_unmerged(core, head, order, of)?;
                units += 1;
                check!(units <= t.frames.len(), "the list of order {order} is a ring");
            }
            let counted = zone.buddy().count(of, order);
            check!(units == counted, "{units} units of order {order}, {counted} counted");
            frames += units << order.get();
        }
        let counted = zone.buddy().free_of(of);
        check!(frames == counted, "{frames} frames free of {of:?}, {counted} counted");
    }
    Ok(())
}

/// A free unit's buddy must not be free at the same order, unless the two may not merge.
fn check_unmerged(
    core: &PoolCore,
    head: FrameId,
    order: Order,
    of: MigrateType,
) -> Result<(), Inconsistent> {
    if order == Order::MAX {
        return Ok(());
    }
    let buddy = head.buddy(order);
    let Some(meta) = core.space().get_meta(buddy) else { return Ok(()) };
    let word = meta.load();
    let theirs = core.blocks().type_at(buddy);
    let may_merge = theirs == of || (theirs.is_mergeable() && of.is_mergeable());
    check!(
        !(word.kind() == FrameKind::Buddy && word.order() == order && may_merge),
        "{head:?} and {buddy:?} are both free at order {order}"
    );
    Ok(())
}

/// Walks all frames, unit by unit.
fn recount(core: &PoolCore) -> Result<Accounting, Inconsistent> {
    let mut seen = Accounting { total: core.frame_count(), ..Accounting::default() };
    let mut at = FrameId::new(0);
    while at.index() < core.frame_count() {
        let word = core.meta(at).load();
        let block_type = core.blocks().type_at(at);
        let frames = match word.kind() {
            FrameKind::Buddy | FrameKind::Used => word.order().frames(),
            FrameKind::Cached | FrameKind::Held => 1,
            FrameKind::Tail => return Err(Inconsistent(format!("{at:?} belongs to no unit"))),
        };
        for inside in 1..frames {
            let kind = core.meta(at.offset(inside)).load().kind();
            check!(kind == FrameKind::Tail, "{:?} inside a unit is {kind:?}", at.offset(inside));
        }
        match word.kind() {
            FrameKind::Buddy if block_type == MigrateType::Isolate => seen.isolated += frames,
            FrameKind::Buddy => {
                seen.free += frames;
                if block_type == MigrateType::Cma {
                    seen.free_cma += frames;
                }
            }
            FrameKind::Cached => {
                seen.free += 1;
                seen.cached += 1;
            }
            FrameKind::Held => seen.isolated += 1,
            FrameKind::Used if word.is_isolated() => seen.isolated += frames,
            FrameKind::Used | FrameKind::Tail => {
                check!(word.refs() > 0, "{at:?} is allocated with no reference");
                seen.used += frames;
            }
        }
        at = at.offset(frames);
    }
    Ok(seen)
}
