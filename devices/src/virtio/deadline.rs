// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long one round of processing may last, in time and in work.
//!
//! A device charges its work as it goes and stops where the deadline has passed:
//!
//! ```
//! use devices::virtio::{Deadline, Progress};
//!
//! fn copy(rows: &mut impl Iterator<Item = Vec<u8>>, deadline: &mut Deadline) -> Progress {
//!     while let Some(row) = rows.next() {
//!         deadline.charge(row.len() as u64);
//!         if deadline.passed() {
//!             return Progress::More;
//!         }
//!     }
//!     Progress::Done
//! }
//!
//! let mut rows = vec![vec![0; 1000]; 10].into_iter();
//! let mut deadline = Deadline::of_work(3000);
//! assert_eq!(copy(&mut rows, &mut deadline), Progress::More);
//! assert_eq!((rows.len(), deadline.spent()), (7, 3000));
//! ```

use std::time::{Duration, Instant};

/// Whether a round left something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a queue with more to do has to be processed again"]
pub enum Progress {
    /// The queue is empty, and the driver is asked to notify the device of the next buffer.
    Done,
    /// The deadline passed first: process the queue again, after others.
    More,
}

impl Progress {
    /// [`Progress::More`] if `more` is true.
    pub fn more_if(more: bool) -> Self {
        if more { Self::More } else { Self::Done }
    }

    /// [`Progress::More`] if this or the `other` part of a round left something to do.
    pub fn or(self, other: Self) -> Self {
        Self::more_if(self == Self::More || other == Self::More)
    }
}

/// The end of one round of processing: a time and an amount of work, whichever comes first.
///
/// The unit of work is about the time to copy one byte. Other work is charged in proportion: see
/// [`Deadline::ENTRY`], [`Deadline::COMMAND`] and [`Deadline::SYSCALL`]. Tests limit rounds by
/// work, without a clock.
#[derive(Debug, Clone)]
pub struct Deadline {
    end: Option<Instant>,
    work: u64,
    spent: u64,
    /// Work at which the clock is read next; reading it costs about as much as copying 200 bytes.
    next_look: u64,
    late: bool,
}

impl Deadline {
    /// Default time limit of a round.
    pub const TIME: Duration = Duration::from_millis(2);
    /// Default work limit of a round: what a slow host copies in [`Deadline::TIME`].
    pub const WORK: u64 = 8 << 20;
    /// Cost of looking at one entry of a list: an address and a length, checked against RAM.
    pub const ENTRY: u64 = 256;
    /// Cost of taking one buffer off a queue, decoding it and giving it back.
    pub const COMMAND: u64 = 2048;
    /// Cost of a system call that changes a mapping.
    pub const SYSCALL: u64 = 64 << 10;
    /// Work between two looks at the clock.
    const LOOK_EVERY: u64 = 16 << 10;

    /// A deadline [`Deadline::TIME`] from now and of [`Deadline::WORK`] units.
    pub fn new() -> Self {
        Self::after(Self::TIME)
    }

    /// A deadline `time` from now and of [`Deadline::WORK`] units.
    pub fn after(time: Duration) -> Self {
        Self { end: Instant::now().checked_add(time), ..Self::of_work(Self::WORK) }
    }

    /// A deadline of `work` units, however long they take.
    pub fn of_work(work: u64) -> Self {
        Self { end: None, work, spent: 0, next_look: Self::LOOK_EVERY, late: false }
    }

    /// A deadline that never passes: for tests, and where only the caller waits.
    pub fn never() -> Self {
        Self::of_work(u64::MAX)
    }

    /// Notes that `units` of work were done, or are about to be.
    pub fn charge(&mut self, units: u64) {
        self.spent = self.spent.saturating_add(units);
    }

    /// True from the moment that the time is over or the work is done.
    ///
    /// Cheap enough to be asked in every inner loop: the clock is read only now and then.
    pub fn passed(&mut self) -> bool {
        if !self.late && self.spent >= self.next_look {
            self.next_look = self.spent.saturating_add(Self::LOOK_EVERY);
            self.late = self.end.is_some_and(|end| Instant::now() >= end);
        }
        self.late || self.spent >= self.work
    }

    /// Remaining units of work; at least 1, so that each round makes progress.
    ///
    /// By this a device sizes its next step, such as a strip of rows.
    pub fn left(&self) -> u64 {
        self.work.saturating_sub(self.spent).max(1)
    }

    /// Units of work charged so far.
    pub fn spent(&self) -> u64 {
        self.spent
    }
}

impl Default for Deadline {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_when_the_work_is_done_and_not_before() {
        let mut deadline = Deadline::of_work(10);
        deadline.charge(9);
        assert!(!deadline.passed());
        assert_eq!(deadline.left(), 1);
        deadline.charge(1);
        assert!(deadline.passed());
        assert_eq!((deadline.left(), deadline.spent()), (1, 10));
        deadline.charge(u64::MAX);
        assert!(deadline.passed());
    }

    #[test]
    fn passes_when_the_time_is_over_however_little_was_done() {
        let mut deadline = Deadline::after(Duration::ZERO);
        deadline.charge(Deadline::LOOK_EVERY);
        assert!(deadline.passed());
        assert!(deadline.passed(), "once late, always late");
    }

    #[test]
    fn never_passes_when_told_so() {
        let mut deadline = Deadline::never();
        deadline.charge(u64::MAX - 1);
        assert!(!deadline.passed());
    }
}
