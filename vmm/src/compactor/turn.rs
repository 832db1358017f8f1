// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Turns on the compactor's thread: one client at a time, or background work, which yields to a
//! client.
//!
//! ```text
//!   free ──▶ background ──▶ client ──▶ free
//!     └────────────────────▶ ┘
//! ```

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

const FREE: u8 = 0;
const BACKGROUND: u8 = 1;
const CLIENT: u8 = 2;

/// The turn, and the flags that ask its owner to end.
#[derive(Debug, Default)]
pub(super) struct Turn {
    owner: AtomicU8,
    cancel_client: AtomicBool,
    cancel_background: AtomicBool,
}

impl Turn {
    /// A client takes the turn; `false` if another client has it. Background work is asked to stop,
    /// and the client's work starts after it.
    pub(super) fn take_for_client(&self) -> bool {
        let took = |from| {
            let result =
                self.owner.compare_exchange(from, CLIENT, Ordering::SeqCst, Ordering::SeqCst);
            result.is_ok()
        };
        // The background may end between the first two, and begin between the others.
        if !(took(FREE) || took(BACKGROUND) || took(FREE) || took(BACKGROUND)) {
            return false;
        }
        self.cancel_client.store(false, Ordering::SeqCst);
        self.cancel_background.store(true, Ordering::SeqCst);
        true
    }

    /// Background work takes the turn; `false` if it is taken.
    pub(super) fn take_for_background(&self) -> bool {
        let free =
            self.owner.compare_exchange(FREE, BACKGROUND, Ordering::SeqCst, Ordering::SeqCst);
        if free.is_err() {
            return false;
        }
        self.cancel_background.store(false, Ordering::SeqCst);
        // A client that arrived before this store has set the flag too early.
        if self.owner.load(Ordering::SeqCst) != BACKGROUND {
            self.cancel_background.store(true, Ordering::SeqCst);
        }
        true
    }

    /// The client is done.
    pub(super) fn end_of_client(&self) {
        self.owner.store(FREE, Ordering::SeqCst);
    }

    /// The background is done; a client that waits for it keeps the turn.
    pub(super) fn end_of_background(&self) {
        let _ = self.owner.compare_exchange(BACKGROUND, FREE, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Asks the owner to end.
    pub(super) fn cancel(&self) {
        self.cancel_client.store(true, Ordering::SeqCst);
        self.cancel_background.store(true, Ordering::SeqCst);
    }

    /// Whether the turn is taken.
    pub(super) fn is_taken(&self) -> bool {
        self.owner.load(Ordering::SeqCst) != FREE
    }

    /// Set when the client's work should stop.
    pub(super) fn client_cancel(&self) -> &AtomicBool {
        &self.cancel_client
    }

    /// Set when background work should stop.
    pub(super) fn background_cancel(&self) -> &AtomicBool {
        &self.cancel_background
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_takes_the_turn_from_the_background_and_from_no_other_client() {
        let turn = Turn::default();
        assert!(turn.take_for_background() && !turn.take_for_background());
        assert!(!turn.background_cancel().load(Ordering::SeqCst));
        assert!(turn.take_for_client() && !turn.take_for_client());
        assert!(turn.background_cancel().load(Ordering::SeqCst));
        turn.end_of_background();
        assert!(turn.is_taken() && !turn.take_for_background());
        assert!(!turn.client_cancel().load(Ordering::SeqCst));
        turn.end_of_client();
        assert!(!turn.is_taken() && turn.take_for_background());
        assert!(!turn.background_cancel().load(Ordering::SeqCst));
    }
}
