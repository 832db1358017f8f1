// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blocks with holes cost the process mappings, which are a budget.

use mm::budget::Budget;

use super::*;

/// A driver of a balloon that may cost so many mappings.
fn rig(limit: u64) -> (Rig, Arc<Budget>) {
    let mappings = Budget::count("test-mappings", limit);
    let mut rig = Rig::over(config(), Host::default(), &mappings, Deadline::new);
    rig.driver.probe(EVERYTHING, ALL_QUEUES);
    (rig, mappings)
}

#[test]
fn alternate_blocks_with_a_page_each_stay_within_the_budget() {
    let (mut rig, mappings) = rig(4);
    rig.inflate([0, 2 * 512, 4 * 512, 6 * 512]);
    rig.settle();
    assert_eq!(rig.discards().len(), 4, "their pages are still discarded");
    assert_eq!(rig.huge().len(), 2);
    assert_eq!(mappings.used(), 4);
    let unguarded = rig.balloon().counters().unguarded_blocks;
    assert_eq!(unguarded, 2);
    rig.validate();
    // A block that leaves makes room for the next.
    rig.deflate([0]);
    assert_eq!(mappings.used(), 2);
    rig.inflate([7 * 512 - 1]);
    rig.settle();
    assert_eq!(mappings.used(), 4);
    assert_eq!(rig.balloon().counters().unguarded_blocks, unguarded);
    rig.validate();
}

#[test]
fn neighbouring_blocks_cost_as_much_as_one() {
    let (mut rig, mappings) = rig(4);
    rig.inflate([512, 2 * 512, 3 * 512, 4 * 512]);
    rig.settle();
    assert_eq!(mappings.used(), 2);
    // The middle of a run: what is left on both sides costs more.
    rig.deflate([2 * 512]);
    assert_eq!(mappings.used(), 4);
    assert_eq!(rig.balloon().counters().unguarded_blocks, 0);
    rig.validate();
}

/// A budget that others have used up also rejects making blocks huge again; only the chance of a
/// huge page is lost.
#[test]
fn block_in_the_middle_of_a_run_stays_small_when_the_budget_is_used_up() {
    let (mut rig, mappings) = rig(4);
    rig.inflate([512, 2 * 512, 3 * 512]);
    rig.settle();
    let others = mappings.try_charge(2).unwrap();
    rig.huge();
    rig.deflate([2 * 512]);
    assert_eq!((rig.huge(), mappings.used()), (vec![], 4));
    assert_eq!(rig.balloon().ballooned(), Pages(2));
    // As soon as its neighbours leave, it costs nothing more to allow huge pages there too.
    drop(others);
    rig.deflate([512, 3 * 512]);
    assert_eq!(mappings.used(), 0);
    rig.validate();
}

#[test]
fn reset_gives_all_mappings_back() {
    let (mut rig, mappings) = rig(8);
    rig.inflate([512, 3 * 512, 5 * 512]);
    rig.settle();
    assert_eq!(mappings.used(), 6);
    rig.driver.reset();
    assert_eq!(mappings.used(), 0);
    assert_eq!(rig.huge().iter().filter(|(_, _, allow)| *allow).count(), 3);
}
