// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration of a pool.

/// Configuration of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZsConfig {
    /// Frames can be migrated and may lie in CMA. Otherwise they are allocated as unmovable.
    pub movable: bool,
    /// Most frames the pool may have.
    pub limit: Option<u32>,
}

impl Default for ZsConfig {
    fn default() -> Self {
        Self { movable: true, limit: None }
    }
}
