// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The last decisions, with reasons.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::snapshot::{Action, Decision};

/// Decisions that are remembered.
const MOST: usize = 64;

/// A decision that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// Number of the decision, from 1.
    pub number: u64,
    /// When it was made, since 1970.
    pub at: Duration,
    /// What and why.
    pub decision: Decision,
    /// Why it could not be carried out.
    pub failed: Option<String>,
}

/// Decisions, the last ones only.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    entries: VecDeque<JournalEntry>,
    written: u64,
}

impl Journal {
    /// Notes a decision and logs it.
    pub(super) fn note(&mut self, decision: Decision, result: Result<(), String>) {
        self.written += 1;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (action, reason) = (&decision.action, &decision.reason);
        match &result {
            Err(error) => tracing::warn!("memory policy: cannot {action}: {error} ({reason})"),
            // Regular eviction rounds are logged at debug level.
            Ok(()) if matches!(action, Action::Evict { .. } | Action::Repack(_)) => {
                tracing::debug!("memory policy: {action}: {reason}");
            }
            Ok(()) => tracing::info!("memory policy: {action}: {reason}"),
        }
        if self.entries.len() == MOST {
            self.entries.pop_front();
        }
        let (number, failed) = (self.written, result.err());
        self.entries.push_back(JournalEntry { number, at, decision, failed });
    }

    /// The decisions that are remembered, the oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &JournalEntry> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_decisions_are_remembered_in_order() {
        let mut journal = Journal::default();
        for nth in 0..100 {
            let reason = format!("reason {nth}");
            let result = if nth == 99 { Err("no balloon".into()) } else { Ok(()) };
            journal.note(Decision { action: Action::Hint, reason }, result);
        }
        let entries: Vec<&JournalEntry> = journal.entries().collect();
        assert_eq!((entries.len(), entries[0].number, entries[63].number), (64, 37, 100));
        assert_eq!(entries[0].decision.reason, "reason 36");
        assert_eq!(entries[63].failed.as_deref(), Some("no balloon"));
    }
}
