// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many tests passed and failed.

use std::fs;
use std::path::Path;

use crate::error::{IoContext, Result};

/// Tests counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Left out, since there was no time.
    pub(crate) not_run: u64,
}

impl Count {
    /// One test that passed.
    pub(crate) const ONE: Self = Self { passed: 1, failed: 0, not_run: 0 };

    /// The summary in `logs` of a test program that ended with `status` (`harness::runner` writes
    /// it). A program that fails has a failed test.
    pub(crate) fn read(logs: &Path, status: u8) -> Result<Self> {
        let summary = logs.join("summary");
        let text = fs::read_to_string(&summary).doing("reading", &summary)?;
        let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
        let mut next = || numbers.next().unwrap_or(0);
        let (passed, failed, not_run) = (next(), next(), next());
        Ok(Self { passed, failed: if status == 0 { failed } else { failed.max(1) }, not_run })
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.not_run += other.not_run;
    }
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn a_program_that_fails_has_a_failed_test() {
        let logs = tempfile::tempdir().unwrap();
        assert!(Count::read(logs.path(), 0).is_err());
        std::fs::write(logs.path().join("summary"), "5 0 2\n").unwrap();
        let read = |status| Count::read(logs.path(), status).unwrap();
        assert_eq!(read(0), Count { passed: 5, failed: 0, not_run: 2 });
        assert_eq!(read(1), Count { passed: 5, failed: 1, not_run: 2 });
    }
}
