// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the steps of `cargo xtask test` have come to. Steps may run at the same time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::count::Count;
use crate::error::Result;
use crate::run;

/// All steps so far.
#[derive(Debug)]
pub(super) struct Tally {
    started: Instant,
    results: Mutex<Results>,
}

#[derive(Debug, Default)]
struct Results {
    all: Count,
    failed_steps: Vec<String>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), results: Mutex::default() }
    }

    /// Runs one step. An error counts as a failed test.
    pub(super) fn step(&self, name: &str, work: impl FnOnce() -> Result<Count>) {
        eprintln!("== {name} (after {})", run::minutes(self.started.elapsed()));
        let count = work().unwrap_or_else(|error| {
            eprintln!("{name}: {error}");
            Count { failed: 1, ..Count::default() }
        });
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.all.add(count);
        if count.failed > 0 {
            results.failed_steps.push(format!("{name}: {} failed", count.failed));
        }
    }

    /// Runs a step that is one test.
    pub(super) fn check(&self, name: &str, check: impl FnOnce() -> Result<()>) {
        self.step(name, || check().map(|()| Count::ONE));
    }

    /// Time since the first step began.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Prints which steps failed and how many tests; whether all passed.
    pub(super) fn close(self) -> bool {
        let Results { all, failed_steps } =
            self.results.into_inner().unwrap_or_else(PoisonError::into_inner);
        for failed in &failed_steps {
            eprintln!("{failed}");
        }
        eprintln!("all steps took {}", run::minutes(self.started.elapsed()));
        let not_run = match all.not_run {
            0 => String::new(),
            number => format!(", {number} not run, since time was up"),
        };
        println!("{} passed, {} failed{not_run}", all.passed, all.failed);
        all.failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;
    use crate::count::Count;
    use crate::error::task_error;

    #[test]
    fn one_failed_step_fails_the_run() {
        let tally = Tally::new();
        tally.check("good", || Ok(()));
        tally.step("counted", || Ok(Count { passed: 2, ..Count::default() }));
        assert!(tally.close());

        let tally = Tally::new();
        tally.check("good", || Ok(()));
        tally.check("bad", || task_error("broken"));
        assert!(!tally.close());
    }
}
