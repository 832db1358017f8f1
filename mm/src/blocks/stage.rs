// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stages of a pass, by name. `stages` carries them out.

/// A stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The guest lends its free memory in whole blocks and gets it back: in exchange for single
    /// pages of the balloon, and empty.
    Gather,
    /// The guest evacuates sparse blocks.
    Evacuate {
        /// Whether it waits for busy pages.
        sync: bool,
    },
    /// The guest evacuates full blocks into the gaps of others.
    Squeeze,
    /// The host discards wasted pages and makes blocks huge.
    Host,
}

impl Stage {
    /// Whether the guest takes part in it.
    pub fn is_of_guest(self) -> bool {
        self != Self::Host
    }

    /// Whether its plan depends on how much memory the guest has free.
    pub fn needs_free(self) -> bool {
        self.is_of_guest()
    }
}
