// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pattern that the agent fills pages with, and by which the harness finds them again in the
//! guest's memory.

/// What each word of a page is larger by than the one before it.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Spreads seed and index over the word. Odd, so that it can be undone.
const SPREAD: u64 = 0xff51_afd7_ed55_8ccd;
const GATHER: u64 = inverse(SPREAD);
/// Where the seed begins; the bits below are the index.
const SEED_SHIFT: u32 = 40;

/// The words of page `index` of the thing whose seed is `seed`, without end.
pub fn words(seed: u64, index: usize) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(first_word(seed, index)), |word| Some(word.wrapping_add(STEP)))
}

/// The first of them. Never 0, as lost pages are.
#[must_use]
pub const fn first_word(seed: u64, index: usize) -> u64 {
    (seed << SEED_SHIFT ^ index as u64).wrapping_mul(SPREAD) | 1
}

/// Seed and index of the page that begins with these words, if it has the pattern and its index is
/// below `indexes`: the lower that is, the less do other bytes look like a page of ours.
#[must_use]
pub fn origin(first: u64, second: u64, indexes: usize) -> Option<(u64, usize)> {
    if second != first.wrapping_add(STEP) {
        return None;
    }
    // The lowest bit was set in any case.
    [first, first ^ 1].into_iter().find_map(|word| {
        let both = word.wrapping_mul(GATHER);
        let index = usize::try_from(both & ((1 << SEED_SHIFT) - 1)).ok()?;
        let seed = both >> SEED_SHIFT;
        (index < indexes && first_word(seed, index) == first).then_some((seed, index))
    })
}

/// What undoes a multiplication by `odd`.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    // Newton's method: right in 3 bits at first, and in twice as many with each step.
    let mut bits = 3;
    while bits < u64::BITS {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_known_by_their_first_words() {
        for seed in [1, 77, 100 + (3 << 8), 0xff_ffff] {
            for index in [0, 1, 2, 63, 299] {
                let first = first_word(seed, index);
                let found = origin(first, first.wrapping_add(STEP), 300);
                assert_eq!(found, Some((seed, index)));
                assert_eq!(origin(first, first, 300), None);
            }
        }
        let beyond = first_word(7, 300);
        assert_eq!(origin(beyond, beyond.wrapping_add(STEP), 300), None);
        assert_eq!(origin(0, STEP, 300), None);
    }
}
