// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks between concurrent xtasks, so that two builds never write the same cache entry.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{IoContext, Result};

/// An exclusive lock, held until dropped (or until the process ends, however it ends).
#[derive(Debug)]
pub(crate) struct FileLock(#[expect(dead_code, reason = "closing the file releases it")] File);

impl FileLock {
    /// Takes the lock `path`, and prints a line if another process holds it.
    pub(crate) fn acquire(path: &Path) -> Result<Self> {
        let file = File::create(path).doing("creating", path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                eprintln!("waiting for another xtask that holds {}", path.display());
                flock(&file, FlockOperation::LockExclusive)
                    .map_err(Into::into)
                    .doing("locking", path)?;
            }
            other => other.map_err(Into::into).doing("locking", path)?,
        }
        Ok(Self(file))
    }
}
