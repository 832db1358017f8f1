// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn range(start: u64, pages: u64) -> GuestRange {
    GuestRange::new(Pfn(start), Pages(pages)).unwrap()
}

/// RAM of three whole blocks and a ragged one, a hole, then one more.
fn ledger() -> Ledger {
    Ledger::new(&[range(0, 3 * 512 + 100), range(8 * 512, 512)])
}

fn taken(ledger: &mut Ledger, block: u64) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    ledger
        .take_pending(BlockId(block), usize::MAX, |run| runs.push((run.start().0, run.pages().0)));
    runs
}

#[test]
fn a_block_that_fills_up_is_given_back_as_one() {
    let mut ledger = ledger();
    assert_eq!(ledger.inflate(range(512, 200)), Pages(200));
    assert_eq!(taken(&mut ledger, 1), [(512, 200)]);
    assert_eq!(ledger.fill(BlockId(1)), BlockFill::Partial);
    assert_eq!(ledger.inflate(range(600, 424)), Pages(312));
    assert_eq!(ledger.fill(BlockId(1)), BlockFill::Full);
    assert_eq!(taken(&mut ledger, 1), [(512, 512)]);
    assert_eq!(taken(&mut ledger, 1), []);
    ledger.validate().unwrap();
}

#[test]
fn a_ragged_block_is_never_full() {
    let mut ledger = ledger();
    assert_eq!(ledger.inflate(range(3 * 512, 100)), Pages(100));
    assert_eq!(ledger.fill(BlockId(3)), BlockFill::Partial);
    assert_eq!(taken(&mut ledger, 3), [(3 * 512, 100)]);
    ledger.validate().unwrap();
}

#[test]
fn what_is_deflated_is_not_pending() {
    let mut ledger = ledger();
    ledger.inflate(range(10, 4));
    assert_eq!(ledger.deflate(range(11, 2)), Pages(2));
    assert_eq!(taken(&mut ledger, 0), [(10, 1), (13, 1)]);
    assert_eq!(ledger.pending(), Pages(0));
    assert_eq!(ledger.ballooned(), Pages(2));
}

#[test]
fn pending_runs_of_a_block_are_taken_in_parts() {
    let mut ledger = ledger();
    for n in 0..10 {
        assert_eq!(ledger.inflate(range(572 + 2 * n, 1)), Pages(1));
    }
    let mut runs = Vec::new();
    let mut take = |ledger: &mut Ledger, most| {
        ledger.take_pending(BlockId(1), most, |run| runs.push(run.start().0))
    };
    assert!(take(&mut ledger, 4));
    assert_eq!(ledger.pending(), Pages(6));
    ledger.validate().unwrap();
    assert!(!take(&mut ledger, 6), "nothing is left");
    assert!(!take(&mut ledger, 6));
    assert_eq!(runs, (0..10).map(|n| 572 + 2 * n).collect::<Vec<_>>());
    ledger.validate().unwrap();
}

#[test]
fn blocks_that_do_not_exist_are_empty() {
    let mut ledger = ledger();
    for block in [4, 7, 9, u64::MAX] {
        assert_eq!(ledger.fill(BlockId(block)), BlockFill::Empty);
        assert_eq!(taken(&mut ledger, block), []);
    }
}

proptest! {
    /// The ledger is two sets of page numbers, and the fast counters agree with them.
    #[test]
    fn behaves_as_sets(
        ops in prop::collection::vec((0u8..3, 0u64..1636, 1u64..700), 1..40),
    ) {
        let mut ledger = ledger();
        let (mut ballooned, mut pending) = (BTreeSet::new(), BTreeSet::new());
        for (op, start, len) in ops {
            let pages = start..(start + len).min(1636);
            let run = range(start, pages.end - start);
            match op {
                0 => {
                    let before = ballooned.len();
                    for page in pages {
                        if ballooned.insert(page) {
                            pending.insert(page);
                        }
                    }
                    prop_assert_eq!(
                        ledger.inflate(run).0 as usize, ballooned.len() - before
                    );
                }
                1 => {
                    let before = ballooned.len();
                    ballooned.retain(|page| !pages.contains(page));
                    pending.retain(|page| !pages.contains(page));
                    prop_assert_eq!(
                        ledger.deflate(run).0 as usize, before - ballooned.len()
                    );
                }
                _ => {
                    let block = start / 512;
                    let of_block = block * 512..block * 512 + 512;
                    let full = of_block.clone().all(|page| ballooned.contains(&page));
                    let expected: BTreeSet<u64> = if full && pending.range(of_block.clone()).next().is_some() {
                        of_block.clone().collect()
                    } else {
                        pending.range(of_block.clone()).copied().collect()
                    };
                    let got: BTreeSet<u64> = taken(&mut ledger, block)
                        .into_iter()
                        .flat_map(|(start, len)| start..start + len)
                        .collect();
                    prop_assert_eq!(got, expected);
                    pending.retain(|page| !of_block.contains(page));
                }
            }
            prop_assert_eq!(ledger.ballooned().0 as usize, ballooned.len());
            prop_assert_eq!(ledger.pending().0 as usize, pending.len());
            prop_assert_eq!(ledger.count(run).0 as usize,
                ballooned.range(run.start().0..run.end().0).count());
            prop_assert_eq!(ledger.validate(), Ok(()));
        }
        let pages: Vec<u64> =
            ledger.ranges().iter().flat_map(|run| run.start().0..run.end().0).collect();
        prop_assert!(pages.iter().eq(ballooned.iter()));
    }
}
