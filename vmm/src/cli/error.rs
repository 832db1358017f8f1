// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors that end `ballast`, and their exit status.

use std::path::PathBuf;

use super::client::ClientError;
use crate::config::ConfigError;
use crate::launch::LaunchError;
use crate::mode::firecracker_exit;

/// Everything that ends `ballast` with status 1.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments cannot be parsed.
    #[error("{0}")]
    Usage(String),
    /// `--level` names no level.
    #[error("--level {0}: give Off, Error, Warning, Info, Debug or Trace")]
    Level(String),
    /// A flag of Firecracker's for something that Ballast does not have.
    #[error("Ballast does not offer {0}")]
    NotOffered(&'static str),
    /// The configuration file is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine cannot be run.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A running monitor could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file cannot be written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        cause: std::io::Error,
    },
    /// A file that should be JSON is not.
    #[error("{}: not JSON: {cause}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        cause: serde_json::Error,
    },
    /// The response of a running monitor is invalid.
    #[error("{0}")]
    Reply(String),
    /// Standard output is gone.
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
    /// This host cannot run machines; the reason was printed.
    #[error("this host cannot run machines")]
    NotAble,
}

impl CliError {
    /// The exit status: 1, or Firecracker's code in its place.
    pub(super) fn status(&self, speaks_firecracker: bool) -> u8 {
        match self {
            Self::Usage(_) if speaks_firecracker => firecracker_exit::ARGUMENTS,
            Self::Level(_) => firecracker_exit::BAD_CONFIGURATION,
            _ => firecracker_exit::GENERIC,
        }
    }
}
