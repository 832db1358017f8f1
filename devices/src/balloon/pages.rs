// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page numbers as a guest sends them, made into runs: sorted, each once, neighbours merged.

use mm::units::{GuestRange, Pages, Pfn};

/// Sorts `pfns`, drops repetitions, and calls `run` for each run of neighbours.
///
/// Returns how many entries were dropped: repetitions, and numbers beyond the address space.
pub fn merge(pfns: &mut Vec<Pfn>, mut run: impl FnMut(GuestRange)) -> u64 {
    let given = pfns.len();
    pfns.sort_unstable();
    pfns.dedup();
    let mut kept = 0;
    let mut rest = pfns.as_slice();
    while let Some(first) = rest.first() {
        let len = (0..)
            .zip(rest)
            .position(|(nth, pfn)| first.checked_add(Pages(nth)) != Some(*pfn))
            .unwrap_or(rest.len());
        if let Some(range) = GuestRange::new(*first, Pages(len as u64)) {
            run(range);
            kept += len;
        }
        rest = &rest[len..];
    }
    (given - kept) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn runs(pfns: &[u64]) -> (Vec<(u64, u64)>, u64) {
        let mut pfns: Vec<Pfn> = pfns.iter().copied().map(Pfn).collect();
        let mut runs = Vec::new();
        let dropped = merge(&mut pfns, |run| runs.push((run.start().0, run.pages().0)));
        (runs, dropped)
    }

    #[test]
    fn neighbours_become_one_run() {
        assert_eq!(runs(&[7, 5, 6, 9]), (vec![(5, 3), (9, 1)], 0));
        assert_eq!(runs(&[5, 5, 5]), (vec![(5, 1)], 2));
        assert_eq!(runs(&[]), (vec![], 0));
    }

    #[test]
    fn numbers_beyond_the_address_space_are_dropped() {
        assert_eq!(runs(&[u64::MAX, 3]), (vec![(3, 1)], 1));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_or_left_unmerged(
            pfns in prop::collection::vec(0u64..300, 0..300),
        ) {
            let (runs, dropped) = runs(&pfns);
            let expected: BTreeSet<u64> = pfns.iter().copied().collect();
            let got: Vec<u64> =
                runs.iter().flat_map(|(start, len)| *start..start + len).collect();
            prop_assert!(got.iter().copied().eq(expected.iter().copied()));
            prop_assert_eq!(dropped as usize, pfns.len() - expected.len());
            for pair in runs.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 < pair[1].0);
            }
        }
    }
}
