// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Leaving something alone that did harm, for longer each time.

/// Rounds to leave something alone, more of them each time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BackOff {
    left: u32,
    last: u32,
    quiet: u32,
}

impl BackOff {
    const FIRST: u32 = 8;
    const LONGEST: u32 = 128;

    /// It did harm. While it is left alone, that is no reason to leave it alone for longer.
    pub(super) fn trip(&mut self) {
        if self.left == 0 {
            self.last = self.last.saturating_mul(2).clamp(Self::FIRST, Self::LONGEST);
        }
        self.left = self.last;
        self.quiet = 0;
    }

    /// A round has passed.
    pub(super) fn round(&mut self) {
        self.left = self.left.saturating_sub(1);
        self.quiet = self.quiet.saturating_add(1);
        if self.quiet > Self::LONGEST {
            *self = Self::default();
        }
    }

    /// Whether it is deferred now.
    pub(super) fn holds(&self) -> bool {
        self.left > 0
    }

    /// Rounds for which it is.
    pub(super) fn left(&self) -> u32 {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_while_harm_comes_back_and_are_forgotten_after_long_quiet() {
        let mut back_off = BackOff::default();
        assert!(!back_off.holds());
        let mut pauses = Vec::new();
        for _ in 0..6 {
            back_off.trip();
            back_off.trip();
            let mut rounds = 0;
            while back_off.holds() {
                back_off.round();
                rounds += 1;
            }
            pauses.push(rounds);
        }
        assert_eq!(pauses, [8, 16, 32, 64, 128, 128]);
        (0..200).for_each(|_| back_off.round());
        back_off.trip();
        assert_eq!(back_off.left(), 8);
    }
}
