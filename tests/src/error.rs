// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The harness's error type, and the macros that tests check with.

use std::io;
use std::time::Duration;

/// Why a test or a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, and to what.
        doing: String,
        /// The cause.
        source: io::Error,
    },
    /// A wait timed out.
    #[error("timed out after {} s waiting for {what}; end of the console:\n{tail}", limit.as_secs())]
    Timeout {
        /// What did not come.
        what: String,
        /// How long it was waited for.
        limit: Duration,
        /// The last lines of the console.
        tail: String,
    },
    /// The monitor ended although the test needs it.
    #[error("the monitor ended while waiting for {what}; end of the console:\n{tail}")]
    Ended {
        /// What did not come.
        what: String,
        /// The last lines of the console.
        tail: String,
    },
    /// The API answered with an error status.
    #[error("{request} was answered {status}: {body}")]
    Api {
        /// Method and path.
        request: String,
        /// HTTP status.
        status: u16,
        /// The answer's body.
        body: String,
    },
    /// A command of the agent in the guest failed.
    #[error("the guest answered `{command}` with: {reason}")]
    Agent {
        /// The command.
        command: String,
        /// The agent's words.
        reason: String,
    },
    /// A check failed.
    #[error("{0}")]
    Check(String),
}

/// What tests return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Gives an I/O error its context.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        |source| Self::Io { doing, source }
    }

    /// Whether a guest hung or ended unexpectedly, as opposed to misbehaving.
    #[must_use]
    pub fn lost_guest(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Ended { .. })
    }
}

/// Ends the test unless the condition holds; the rest is the message.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Error::Check(format!(
                "{}: {}", stringify!($condition), format_args!($($message)+)
            )));
        }
    };
}

/// Ends the test unless both sides are equal.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            return Err($crate::Error::Check(format!(
                "{} is {left:?}, not {right:?}",
                stringify!($left)
            )));
        }
    }};
}
