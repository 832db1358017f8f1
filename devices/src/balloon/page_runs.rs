// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lists of page runs, kept in order.

use std::collections::VecDeque;

use mm::units::{GuestRange, Pages};

/// Blocks that lie wholly in `runs`.
pub(super) fn whole_blocks(runs: &[GuestRange]) -> u64 {
    runs.iter().map(|run| run.whole_blocks().count() as u64).sum()
}

/// Appends `run` to `runs`, merged with the last one if adjacent.
pub(super) fn append(runs: &mut Vec<GuestRange>, run: GuestRange) {
    if let Some(last) = runs.last_mut()
        && last.end() == run.start()
        && let Some(merged) = GuestRange::from_bounds(last.start(), run.end())
    {
        *last = merged;
    } else {
        runs.push(run);
    }
}

/// Takes at most `runs` ranges with `most` pages in total off the front of `queue`.
pub(super) fn take_pages(
    queue: &mut VecDeque<GuestRange>,
    most: Pages,
    runs: usize,
) -> Vec<GuestRange> {
    let mut left = most.0;
    let mut taken = Vec::new();
    while left > 0
        && taken.len() < runs
        && let Some(range) = queue.pop_front()
    {
        let cut = range.start().checked_add(Pages(left)).filter(|cut| *cut < range.end());
        let first = cut.and_then(|cut| GuestRange::from_bounds(range.start(), cut));
        if let Some(rest) = cut.and_then(|cut| GuestRange::from_bounds(cut, range.end())) {
            queue.push_front(rest);
        }
        let first = first.unwrap_or(range);
        left -= first.pages().0;
        taken.push(first);
    }
    taken
}

#[cfg(test)]
mod tests {
    use mm::units::Pfn;

    use super::*;

    #[test]
    fn steps_are_cut_from_the_front_and_lose_nothing() {
        let range = |start, pages| GuestRange::new(Pfn(start), Pages(pages)).unwrap();
        let mut queue: VecDeque<_> = [range(0, 3), range(10, 1), range(20, 9)].into();
        let mut next = |runs| take_pages(&mut queue, Pages(5), runs);
        assert_eq!(next(1), [range(0, 3)]);
        assert_eq!(next(2), [range(10, 1), range(20, 4)]);
        assert_eq!(next(9), [range(24, 5)]);
        assert_eq!(next(9), []);
    }
}
