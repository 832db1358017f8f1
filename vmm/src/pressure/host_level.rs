// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the host is off.

/// How the host is off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostLevel {
    /// It has memory to spare.
    #[default]
    Comfortable,
    /// Less than twice the reserve is available, or tasks wait for memory now and then.
    Tight,
    /// Less than the reserve is available, or tasks wait for memory much of the time.
    Short,
}

impl HostLevel {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Comfortable => "comfortable",
            Self::Tight => "tight",
            Self::Short => "short",
        }
    }
}
