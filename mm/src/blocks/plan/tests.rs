// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The laws of plans, and what blocks get.

use proptest::prelude::*;

use super::*;
use crate::blocks::mask::PageMask;

/// A block with the given numbers of pages: used, ballooned and absent, ballooned and present.
fn block(used: u16, gone: u16, wasted: u16, flags: BlockFlags) -> Block {
    let (present, ballooned) = (used + wasted, gone + wasted);
    Block { present, ballooned, wasted, flags, ..Block::default() }
}

fn map(blocks: Vec<Block>) -> BlockMap {
    let wasted = |b: &Block| {
        let mut mask = PageMask::EMPTY;
        mask.set_range(0..usize::from(b.wasted));
        mask
    };
    let masks = blocks.iter().enumerate().filter(|(_, b)| b.wasted > 0);
    let masks = masks.map(|(i, b)| (BlockId(i as u64), wasted(b))).collect();
    BlockMap::of(BlockId(0), blocks, masks)
}

/// The plans of all stages for one map.
fn actions(map: &BlockMap, goals: &Goals) -> Vec<PlanAction> {
    let plan = |stage| plan(map, goals, stage, PassLimits::UNLIMITED, &Costs::default());
    let steps = goals.stages().filter(|stage| *stage != Stage::Evacuate { sync: true });
    steps.flat_map(|stage| plan(stage).steps).map(|step| step.action).collect()
}

#[test]
fn each_block_gets_what_it_calls_for() {
    let small = BlockFlags::empty();
    let blocks = vec![
        block(0, 0, 512, BlockFlags::HUGE),    // ballooned, still present
        block(512, 0, 0, BlockFlags::HUGE),    // as it should be
        block(512, 0, 0, small),               // dense
        block(100, 300, 0, small),             // sparse, with holes
        block(500, 0, 12, BlockFlags::HUGE),   // not worth a split
        block(400, 12, 100, BlockFlags::HUGE), // worth one
        block(0, 512, 0, small),               // given back already
        block(512, 0, 0, BlockFlags::LEFT_OUT),
    ];
    let map = map(blocks);
    let id = BlockId;
    let alone =
        [PlanAction::Discard(id(0)), PlanAction::Discard(id(5)), PlanAction::Collapse(id(2))];
    assert_eq!(actions(&map, &Goals::all(false)), alone);
    let evacuated = [PlanAction::Evacuate(id(3)), PlanAction::Evacuate(id(5))];
    let helped: Vec<_> = evacuated.into_iter().chain(alone).collect();
    assert_eq!(actions(&map, &Goals::all(true)), helped);
}

#[test]
fn scope_and_goals_limit_a_plan() {
    let map = map(vec![block(0, 0, 512, BlockFlags::HUGE); 4]);
    let scope = BlockId(2).checked_range();
    assert_eq!(
        actions(&map, &Goals { scope, ..Goals::all(true) }),
        [PlanAction::Discard(BlockId(2))]
    );
    assert_eq!(actions(&map, &Goals { discard: false, ..Goals::all(true) }), []);
}

#[test]
fn single_pages_and_free_memory_are_gathered() {
    let small = BlockFlags::empty();
    let cut = vec![block(256, 256, 0, small); 60];
    let whole = vec![block(512, 0, 0, BlockFlags::HUGE); 60];
    let gathered_if = |collapse_from, blocks: &[Block], free_mib: u64| {
        let map = map(blocks.to_vec()).with_guest_free(Bytes(free_mib << 20));
        let goals = Goals { evacuate_up_to: None, squeeze: false, ..Goals::all(true) };
        actions(&map, &Goals { collapse_from, ..goals })
    };
    let gathered = |blocks: &[Block], free_mib| gathered_if(Some(Pages(400)), blocks, free_mib);
    // 120 MiB of RAM, of which the kernel keeps 10.
    let order = |exchange| [PlanAction::Gather(GatherOrder { lend: 10, exchange })];
    assert_eq!(gathered(&cut, 30), order(20), "of 60 MiB of single pages, a third of memory");
    assert_eq!(gathered_if(None, &cut, 30), order(0), "the host is short of memory");
    assert_eq!(gathered(&whole, 30), order(0), "30 MiB are wasted");
    assert_eq!(gathered(&whole, 11), [], "too little to be worth it");
    assert_eq!(gathered(&cut, 8), [], "the kernel needs that");
    assert_eq!(gathered(&cut, 1 << 20), [], "nonsense");
}

#[test]
fn no_more_sparse_blocks_are_evacuated_than_the_others_take_in() {
    let small = BlockFlags::empty();
    let mut blocks = vec![block(400, 0, 0, small); 10];
    blocks[7] = block(300, 0, 0, small);
    let goals = Goals { gather: false, squeeze: false, collapse_from: None, ..Goals::all(true) };
    assert_eq!(actions(&map(blocks.clone()), &goals).len(), 10, "nothing is known of room");
    // All of it is absent: 112 pages in each of the blocks that stay.
    let free = Pages(10 * 112 + 100).bytes();
    let evacuated = |free: Bytes| {
        let map = map(blocks.clone()).with_guest_free(free);
        let mut found = actions(&map, &goals);
        found.sort();
        found
    };
    assert_eq!(evacuated(free), [0, 7].map(|id| PlanAction::Evacuate(BlockId(id))));
    // Room that is resident already.
    let more = free.saturating_add(Pages(400).bytes());
    assert_eq!(evacuated(more), [0, 1, 7].map(|id| PlanAction::Evacuate(BlockId(id))));
}

#[test]
fn gaps_are_filled_from_blocks_at_the_top() {
    let whole = block(512, 0, 0, BlockFlags::HUGE);
    let absent = block(0, 0, 0, BlockFlags::empty());
    let blocks: Vec<Block> = [vec![whole; 40], vec![absent; 20]].concat();
    let pressed = |free_mib: u64| {
        let map = map(blocks.clone()).with_guest_free(Bytes(free_mib << 20));
        actions(&map, &Goals { gather: false, ..Goals::all(true) })
    };
    // 40 MiB are absent, so 6 more are gaps: three blocks fill them.
    assert_eq!(pressed(46), [37, 38, 39].map(|id| PlanAction::Evacuate(BlockId(id))));
    assert_eq!(pressed(41), [], "too little");
    assert_eq!(pressed(1000), [], "nonsense");
}

#[test]
fn a_range_is_backed_where_it_has_no_holes() {
    let small = BlockFlags::empty();
    let (huge, holed) = (block(512, 0, 0, BlockFlags::HUGE), block(100, 12, 0, small));
    let map = map(vec![huge, block(0, 0, 0, small), holed, block(3, 0, 0, small)]);
    let goals = Goals { scope: None, ..Goals::backing(BlockId(0).checked_range().unwrap()) };
    let wanted = [PlanAction::Back(BlockId(1)), PlanAction::Back(BlockId(3))];
    assert_eq!(actions(&map, &goals), wanted);
    let swept = Block { gpu: 512, ..block(40, 0, 0, small) };
    let map = BlockMap::of(BlockId(7), vec![swept, block(512, 0, 0, small)], vec![]);
    assert_eq!(actions(&map, &Goals::backing_gpu()), [PlanAction::Back(BlockId(7))]);
    assert!(actions(&map, &Goals::all(false)).contains(&PlanAction::Back(BlockId(7))));
}

fn any_block() -> impl Strategy<Value = Block> {
    (0u16..=512, 0u16..=512, 0u16..=512, 0u8..8, any::<bool>()).prop_map(
        |(used, gone, wasted, flags, gpu)| {
            let used = used.min(512);
            let wasted = wasted.min(512 - used);
            let gone = gone.min(512 - used - wasted);
            let flags = BlockFlags::from_bits_truncate(flags);
            Block { gpu: if gpu { 512 } else { 0 }, ..block(used, gone, wasted, flags) }
        },
    )
}

proptest! {
    #[test]
    fn laws_of_plans(
        blocks in prop::collection::vec(any_block(), 0..60),
        bytes in 0u64..40 << 20,
        micros in 0u64..20_000,
        collapse_from in prop::option::of(0u64..=512),
        evacuate_up_to in prop::option::of(0u64..=512),
        discard: bool,
        split_from in 0u64..=512,
        free in prop::option::of(0u64..200 << 20),
        (gather, squeeze, back, back_gpu) in any::<(bool, bool, bool, bool)>(),
        stage in prop::sample::select(vec![
            Stage::Gather, Stage::Evacuate { sync: false }, Stage::Squeeze, Stage::Host,
        ]),
    ) {
        let mut map = map(blocks);
        if let Some(free) = free {
            map = map.with_guest_free(Bytes(free));
        }
        let totals = map.totals();
        let goals = Goals {
            scope: None,
            discard,
            split_from: Pages(split_from),
            collapse_from: collapse_from.map(Pages),
            evacuate_up_to: evacuate_up_to.map(Pages),
            gather,
            squeeze,
            back,
            back_gpu,
        };
        let limits = PassLimits { bytes: Bytes(bytes), time: Duration::from_micros(micros) };
        let made = plan(&map, &goals, stage, limits, &Costs::default());
        // The same input gives the same plan.
        prop_assert_eq!(&made, &plan(&map, &goals, stage, limits, &Costs::default()));
        // Never above the limits.
        prop_assert!(made.steps.iter().map(|s| s.copies.0).sum::<u64>() <= limits.bytes.0);
        prop_assert!(made.steps.iter().map(|s| s.takes).sum::<Duration>() <= limits.time);
        for step in &made.steps {
            prop_assert!(step.frees.0 + step.makes_huge.0 > 0, "a step without gain");
            let Some(id) = step.action.block() else {
                // The guest keeps what its kernel needs, and is asked for at most what it has.
                let PlanAction::Gather(order) = step.action else { panic!("{step:?}") };
                let borrowed = u64::from(order.lend) * Pages(PAGES_PER_BLOCK).bytes().0;
                prop_assert!(gather && borrowed + reserve(totals.ram).0 <= free.unwrap());
                prop_assert!(borrowed + totals.ballooned.0 <= totals.ram.0);
                // It gets back no more than the balloon has.
                let exchanged = u64::from(order.exchange) * BLOCK_SIZE;
                prop_assert!(exchanged <= totals.ballooned.0);
                continue;
            };
            let block = map.get(id).unwrap();
            prop_assert!(!block.flags.contains(BlockFlags::LEFT_OUT));
            match step.action {
                // Only what is ballooned is discarded.
                PlanAction::Discard(id) => {
                    prop_assert!(discard && block.wasted > 0);
                    prop_assert_eq!(map.wasted(id).count().0, u64::from(block.wasted));
                }
                // No hole is filled.
                PlanAction::Collapse(_) => prop_assert!(!block.has_holes()),
                PlanAction::Back(_) => {
                    prop_assert!(!block.has_holes());
                    prop_assert!(back || back_gpu && in_one_sweep(block));
                }
                PlanAction::Gather(_) => unreachable!(),
                PlanAction::Evacuate(_) => {
                    let sparse = evacuate_up_to.is_some_and(|limit| block.used().0 <= limit);
                    prop_assert!(sparse || squeeze && free.is_some());
                }
            }
        }
        // Best first.
        prop_assert!(made.steps.windows(2).all(|w| w[0].merit() >= w[1].merit()));
        // One step of a kind for a block.
        let mut seen: Vec<_> = made.steps.iter().map(|s| s.action).collect();
        seen.sort();
        seen.dedup();
        prop_assert_eq!(seen.len(), made.steps.len());
    }

    /// Nothing is planned where nothing can be gained.
    #[test]
    fn plans_nothing_for_a_guest_with_nothing_to_gain(huge in prop::collection::vec(any::<bool>(), 0..60)) {
        let tidy = |&huge: &bool| {
            if huge { block(512, 0, 0, BlockFlags::HUGE) } else { block(0, 512, 0, BlockFlags::empty()) }
        };
        let map = map(huge.iter().map(tidy).collect());
        prop_assert_eq!(actions(&map, &Goals::all(true)), []);
        // Nor if it reports free memory that its kernel needs.
        let kept = reserve(map.totals().ram);
        prop_assert_eq!(actions(&map.with_guest_free(kept), &Goals::all(true)), []);
    }
}
