// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Trimming before a park: the guest gives up free memory and page cache, which need not be
//! compressed then.
//!
//! The balloon borrows memory in steps, on top of its target, which stays as it is. Before each step
//! the guest says how much it could spare: its reserve and the request's floor are never asked for.
//! At the end the guest has the memory back. It takes none of the host's until the guest writes to
//! it: ballooned pages were discarded, and read as zero.

use std::sync::atomic::{AtomicBool, Ordering};

use mm::units::{BLOCK_SIZE, Bytes, PAGES_PER_BLOCK, Pages};

/// Share of the guest's memory that must stay available to it, and the least that this is.
const RESERVE_SHARE: u64 = 16;
const RESERVE_LEAST: u64 = 16 << 20;
/// Largest step, as a share of the guest's memory: between two the guest is asked how it is.
const STEP_SHARE: u64 = 8;
/// Most steps: a guest whose figures do not change with what it gives is not asked without end.
const MOST_STEPS: u32 = 16;
/// Page faults that read from a disk, during one step, from which the guest is short of memory: it
/// reads back what it has just given up.
const MANY_FAULTS: u64 = 500;

/// What the guest says about its memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TrimFigures {
    /// What a new workload could have, page cache included.
    pub(crate) available: Bytes,
    /// Processes killed by the OOM killer since it booted.
    pub(crate) kills: u64,
    /// Bytes swapped in since it booted.
    pub(crate) swapped_in: u64,
    /// Page faults that read from a disk, since it booted.
    pub(crate) major_faults: u64,
}

/// The guest, as trimming sees it.
pub(super) trait TrimGuest {
    /// All of its memory.
    fn memory(&self) -> Bytes;

    /// What the balloon has borrowed already, on top of its target.
    ///
    /// # Errors
    ///
    /// Why the guest cannot be trimmed.
    fn borrowed(&self) -> Result<Pages, String>;

    /// Asks the guest for its figures; `None` if it does not answer in time.
    fn ask(&self, cancel: &AtomicBool) -> Option<TrimFigures>;

    /// Borrows `to` pages on top of the target instead of `from`, and waits until the guest has given
    /// them or gives no more. `None` if others have changed the target since, which ends the loan.
    fn borrow(&self, from: Pages, to: Pages, cancel: &AtomicBool) -> Option<Gave>;

    /// Returns `pages` of what was borrowed, and waits for a limited time until the guest has them.
    fn give_back(&self, pages: Pages);
}

/// What came of a request for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gave {
    /// What the guest gave.
    pub(crate) pages: Pages,
    /// Why it was not all that it was asked for.
    pub(crate) short: Option<&'static str>,
}

/// Result of trimming.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrimReport {
    /// What the guest gave up.
    pub given: Bytes,
    /// Why it ended there.
    pub ended: String,
}

/// Asks `guest` for memory until it has only its reserve left, or `floor` in all; then returns it.
/// `progress` is told blocks that were given, and that it could give in all.
pub(super) fn trim(
    guest: &impl TrimGuest,
    floor: Bytes,
    cancel: &AtomicBool,
    progress: &dyn Fn(u64, u64),
) -> TrimReport {
    let keep = match guest.borrowed() {
        Ok(pages) => pages,
        Err(ended) => return TrimReport { given: Bytes(0), ended },
    };
    let loan = keep;
    let mut run = TrimRun { guest, floor, keep, loan, given: Pages(0), before: None };
    let ended = (0..MOST_STEPS).find_map(|_| match cancel.load(Ordering::Relaxed) {
        true => Some("cancelled".to_owned()),
        false => run.step(cancel, progress).err(),
    });
    guest.give_back(Pages(run.loan.0 - keep.0));
    let ended = ended.unwrap_or_else(|| "that many steps are enough".to_owned());
    TrimReport { given: run.given.bytes(), ended }
}

struct TrimRun<'a, G> {
    guest: &'a G,
    floor: Bytes,
    /// What was borrowed before.
    keep: Pages,
    /// What is borrowed in all; the guest may have given less.
    loan: Pages,
    given: Pages,
    /// The figures before the last step.
    before: Option<TrimFigures>,
}

impl<G: TrimGuest> TrimRun<'_, G> {
    /// Asks for a little more; the reason if that was the last step.
    fn step(&mut self, cancel: &AtomicBool, progress: &dyn Fn(u64, u64)) -> Result<(), String> {
        let told = self.guest.ask(cancel).ok_or("the guest sends no statistics")?;
        let memory = self.guest.memory();
        let reserve = Bytes((memory.0 / RESERVE_SHARE).max(RESERVE_LEAST));
        if let Some(why) = complaint(self.before.replace(told), told, reserve) {
            return Err(why);
        }
        let above_floor = memory.saturating_sub(self.floor).saturating_sub(self.given.bytes());
        let spare = blocks(told.available.saturating_sub(reserve));
        let room = blocks(above_floor);
        let done = self.given.0 / PAGES_PER_BLOCK;
        progress(done, done + spare.min(room));
        let step = blocks(Bytes(memory.0 / STEP_SHARE)).max(1);
        let more = match (spare, room) {
            (0, _) => return Err("the guest needs the rest".to_owned()),
            (_, 0) => return Err("the rest is the floor".to_owned()),
            _ => Pages(spare.min(room).min(step) * PAGES_PER_BLOCK),
        };
        let from = self.loan;
        self.loan = Pages(from.0 + more.0);
        let Some(gave) = self.guest.borrow(from, self.loan, cancel) else {
            self.loan = self.keep;
            return Err("the balloon's target was changed".to_owned());
        };
        self.given = Pages(self.given.0 + gave.pages.0);
        gave.short.map_or(Ok(()), |why| Err(why.to_owned()))
    }
}

/// Whole blocks in `bytes`.
fn blocks(bytes: Bytes) -> u64 {
    bytes.0 / BLOCK_SIZE
}

/// Whether the guest is short of memory, and how that shows.
fn complaint(before: Option<TrimFigures>, now: TrimFigures, reserve: Bytes) -> Option<String> {
    let before = before?;
    let more = |count: fn(&TrimFigures) -> u64| count(&now).saturating_sub(count(&before));
    if more(|told| told.kills) > 0 {
        Some("the guest's OOM killer killed a process".to_owned())
    } else if more(|told| told.swapped_in) > 0 {
        Some("the guest swaps".to_owned())
    } else if more(|told| told.major_faults) >= MANY_FAULTS {
        Some(format!("the guest had {} major page faults", more(|told| told.major_faults)))
    } else if now.available.0 < reserve.0 / 2 {
        Some(format!("the guest has only {} MiB available", now.available.as_mib()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MIB: u64 = 1 << 20;
    static NEVER: AtomicBool = AtomicBool::new(false);

    /// A guest of 512 MiB.
    struct Model {
        available: Cell<u64>,
        surplus: Cell<u64>,
        /// Pages that it gives at most.
        gives: u64,
        /// Pages at which another target is set.
        taken_at: u64,
        /// Pages at which a process is killed.
        kills_at: u64,
        most: Cell<u64>,
        asked: Cell<u32>,
    }

    impl Model {
        fn new(available_mib: u64) -> Self {
            Self {
                available: Cell::new(available_mib * MIB),
                surplus: Cell::new(0),
                gives: u64::MAX,
                taken_at: u64::MAX,
                kills_at: u64::MAX,
                most: Cell::new(0),
                asked: Cell::new(0),
            }
        }
    }

    impl TrimGuest for Model {
        fn memory(&self) -> Bytes {
            Bytes(512 * MIB)
        }

        fn borrowed(&self) -> Result<Pages, String> {
            Ok(Pages(self.surplus.get()))
        }

        fn ask(&self, _: &AtomicBool) -> Option<TrimFigures> {
            self.asked.set(self.asked.get() + 1);
            let kills = u64::from(self.surplus.get() >= self.kills_at);
            Some(TrimFigures {
                available: Bytes(self.available.get()),
                kills,
                ..TrimFigures::default()
            })
        }

        fn borrow(&self, from: Pages, to: Pages, _: &AtomicBool) -> Option<Gave> {
            assert_eq!(from.0, self.surplus.get());
            if to.0 > self.taken_at {
                self.surplus.set(0);
                return None;
            }
            let gave = (to.0 - from.0).min(self.gives.saturating_sub(from.0));
            self.available.set(self.available.get().saturating_sub(gave * 4096));
            self.surplus.set(to.0);
            self.most.set(self.most.get().max(to.0));
            let short = (from.0 + gave < to.0).then_some("the guest gives no more");
            Some(Gave { pages: Pages(gave), short })
        }

        fn give_back(&self, pages: Pages) {
            self.surplus.set(self.surplus.get() - pages.0);
        }
    }

    fn trimmed(guest: &Model, floor_mib: u64) -> TrimReport {
        trim(guest, Bytes(floor_mib * MIB), &NEVER, &|done, planned| assert!(done <= planned))
    }

    #[test]
    fn a_guest_keeps_its_reserve_and_gets_everything_back() {
        let guest = Model::new(300);
        let report = trimmed(&guest, 0);
        assert_eq!(report.given, Bytes((300 - 32) * MIB));
        assert_eq!(report.ended, "the guest needs the rest");
        assert_eq!(guest.surplus.get(), 0);
        // Steps of an eighth, each after a look at the guest.
        assert_eq!(guest.asked.get(), 6);
    }

    #[test]
    fn a_floor_stays_and_so_does_what_was_borrowed_before() {
        let guest = Model::new(300);
        guest.surplus.set(512);
        let report = trimmed(&guest, 400);
        assert_eq!((report.given, guest.most.get()), (Bytes(112 * MIB), 512 + 112 * 256));
        assert_eq!(report.ended, "the rest is the floor");
        assert_eq!(guest.surplus.get(), 512);
    }

    #[test]
    fn trimming_stops_at_the_first_sign_of_want() {
        let guest = Model { kills_at: 64 * 256, ..Model::new(300) };
        let report = trimmed(&guest, 0);
        assert_eq!(report.given, Bytes(64 * MIB));
        assert!(report.ended.contains("OOM killer"), "{report:?}");
        let guest = Model { gives: 100 * 256, ..Model::new(300) };
        let report = trimmed(&guest, 0);
        assert_eq!(
            (report.given, report.ended.as_str()),
            (Bytes(100 * MIB), "the guest gives no more")
        );
        // A client sets a target, which stays.
        let guest = Model { taken_at: 100 * 256, ..Model::new(300) };
        let report = trimmed(&guest, 0);
        assert_eq!(report.given, Bytes(64 * MIB));
        assert_eq!(report.ended, "the balloon's target was changed");
        let cancelled = AtomicBool::new(true);
        let guest = Model::new(300);
        assert_eq!(trim(&guest, Bytes(0), &cancelled, &|_, _| ()).ended, "cancelled");
        assert_eq!(guest.most.get(), 0);
    }

    #[test]
    fn a_guest_whose_figures_never_change_is_asked_a_limited_number_of_times() {
        struct Liar(Model);
        impl TrimGuest for Liar {
            fn memory(&self) -> Bytes {
                self.0.memory()
            }
            fn borrowed(&self) -> Result<Pages, String> {
                self.0.borrowed()
            }
            fn ask(&self, cancel: &AtomicBool) -> Option<TrimFigures> {
                self.0.available.set(u64::MAX);
                self.0.ask(cancel)
            }
            fn borrow(&self, from: Pages, to: Pages, cancel: &AtomicBool) -> Option<Gave> {
                self.0.borrow(from, to, cancel)
            }
            fn give_back(&self, pages: Pages) {
                self.0.give_back(pages);
            }
        }
        let guest = Liar(Model::new(300));
        let report = trim(&guest, Bytes(0), &NEVER, &|_, _| ());
        assert_eq!(report.given, Bytes(512 * MIB), "no more than it has");
        assert_eq!(guest.0.surplus.get(), 0);
    }

    #[test]
    fn want_shows_in_every_figure() {
        let before = TrimFigures { available: Bytes(100 * MIB), ..TrimFigures::default() };
        let reserve = Bytes(32 * MIB);
        let complains = |now| complaint(Some(before), now, reserve).is_some();
        assert!(!complains(before));
        assert!(complains(TrimFigures { kills: 1, ..before }));
        assert!(complains(TrimFigures { swapped_in: 4096, ..before }));
        assert!(complains(TrimFigures { major_faults: MANY_FAULTS, ..before }));
        assert!(complains(TrimFigures { available: Bytes(15 * MIB), ..before }));
        assert_eq!(complaint(None, TrimFigures::default(), reserve), None, "nothing was taken yet");
    }
}
