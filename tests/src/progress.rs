// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Progress of a test run, in a file next to the logs: the emulated machine may crash during tests.
//! The next run in a new machine continues from there.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// A test fails after it has crashed this many machines.
const CRASHES: usize = 3;

/// What is known of a test from machines before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing.
    Nothing,
    /// It has begun, and a machine crashed: that may have been chance.
    Begun,
    /// It has passed.
    Passed,
    /// It has failed.
    Failed,
    /// Machine after machine went down with it.
    Crashed,
}

/// The file, open to be written to.
#[derive(Debug)]
pub struct Progress {
    file: File,
    before: String,
}

impl Progress {
    /// Reads the progress file in the folder `logs`, if there is one, and continues from it.
    pub fn open(logs: &Path) -> Result<Self> {
        let path = logs.join("progress");
        let doing = || Error::io(format!("opening {}", path.display()));
        let before =
            if path.exists() { fs::read_to_string(&path).map_err(doing())? } else { String::new() };
        let file = File::options().create(true).append(true).open(&path).map_err(doing())?;
        Ok(Self { file, before })
    }

    /// What is known of the test `name`.
    #[must_use]
    pub fn of(&self, name: &str) -> Known {
        let count = |word: &str| {
            let line = |line: &&str| line.split_once(' ') == Some((word, name));
            self.before.lines().filter(line).count()
        };
        if count("passed") > 0 {
            Known::Passed
        } else if count("failed") > 0 {
            Known::Failed
        } else {
            match count("begun") {
                0 => Known::Nothing,
                1..CRASHES => Known::Begun,
                _ => Known::Crashed,
            }
        }
    }

    /// Notes that the test `name` begins.
    pub fn begin(&mut self, name: &str) -> Result<()> {
        self.note("begun", name)
    }

    /// Notes how it ended.
    pub fn end(&mut self, name: &str, passed: bool) -> Result<()> {
        self.note(if passed { "passed" } else { "failed" }, name)
    }

    fn note(&mut self, word: &str, name: &str) -> Result<()> {
        let line = format!("{word} {name}\n");
        self.file.write_all(line.as_bytes()).map_err(Error::io("noting the progress"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_machine_continues_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Progress::open(dir.path()).unwrap();
        first.begin("a::good").unwrap();
        first.end("a::good", true).unwrap();
        first.begin("a::bad").unwrap();
        first.end("a::bad", false).unwrap();
        first.begin("a::deadly").unwrap();

        let mut second = Progress::open(dir.path()).unwrap();
        assert_eq!(second.of("a::good"), Known::Passed);
        assert_eq!(second.of("a::bad"), Known::Failed);
        assert_eq!(second.of("a::deadly"), Known::Begun, "once may be chance");
        assert_eq!(second.of("a::goo"), Known::Nothing);
        for _ in 1..CRASHES {
            second.begin("a::deadly").unwrap();
        }
        assert_eq!(Progress::open(dir.path()).unwrap().of("a::deadly"), Known::Crashed);
    }
}
