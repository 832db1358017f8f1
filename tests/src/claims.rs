// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which machine takes which test, where several run the same tests side by side. They see the same
//! folder, in which a test has an entry once a machine has taken it.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::{Error, Result};

/// The folder; none where one machine takes all.
#[derive(Debug)]
pub struct Claims(Option<PathBuf>);

impl Claims {
    /// Takes tests in the folder `dir`, which exists.
    #[must_use]
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self(dir)
    }

    /// Takes the test that has the folder `name`. Returns whether it was still free.
    pub fn take(&self, name: &str) -> Result<bool> {
        let Some(dir) = &self.0 else { return Ok(true) };
        // Making a folder either succeeds or finds it there, also over 9p.
        match fs::create_dir(dir.join(name)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::io(format!("taking the test {name}"))(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = [(); 2].map(|()| Claims::new(Some(dir.path().to_owned())));
        assert!(first.take("a-test").unwrap());
        assert!(!second.take("a-test").unwrap());
        assert!(second.take("a-other").unwrap());
        assert!(Claims::new(None).take("a-test").unwrap());
        assert!(Claims::new(Some(dir.path().join("gone"))).take("a-test").is_err());
    }
}
