// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The error type of xtask: every variant names the operation and its object.

use std::io;
use std::path::{Path, PathBuf};

/// Why a task could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot start {program}: {source}")]
    Spawn { program: String, source: io::Error },
    #[error("{program} {ending}{tail}")]
    Command { program: String, ending: String, tail: String },
    #[error("{0}")]
    Task(String),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Attaches the path, and what was being done to it, to an I/O error.
pub(crate) trait IoContext<T> {
    fn doing(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { doing, path: path.as_ref().to_owned(), source })
    }
}

/// An error with a message of its own.
pub(crate) fn task_error<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Task(message.into()))
}
