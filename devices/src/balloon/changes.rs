// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How another thread learns that a balloon has changed, without polling the balloon's lock.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A counter that goes up whenever the balloon's size, its statistics or its driver changes.
///
/// ```
/// # use std::time::Duration;
/// # use devices::balloon::Changes;
/// let changes = Changes::default();
/// let seen = changes.count();
/// // Look at the balloon here; what changes from now on ends the wait.
/// assert_eq!(changes.wait(seen, Duration::from_millis(1)), seen, "nothing changed");
/// ```
#[derive(Debug, Default)]
pub struct Changes {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Changes {
    /// Number of changes so far. Read it before looking at the balloon.
    pub fn count(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there have been more than `seen`, for `timeout` at most; how many there are.
    pub fn wait(&self, seen: u64, timeout: Duration) -> u64 {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(count, timeout, |count| *count == seen);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Ends all waits: for the balloon, and for a caller that cancels what a thread waits for.
    pub fn announce(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn change_ends_the_wait() {
        let changes = Arc::new(Changes::default());
        let seen = changes.count();
        let teller = Arc::clone(&changes);
        let thread = std::thread::spawn(move || teller.announce());
        assert_eq!(changes.wait(seen, Duration::from_secs(60)), seen + 1);
        thread.join().unwrap();
        assert_eq!(changes.wait(seen, Duration::from_secs(60)), seen + 1, "already changed");
    }
}
