// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Balloon pages that the guest migrates: one page (or block) goes in alone, and the next buffer
//! takes one out.

/// The contents of a buffer with a single page or block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Single {
    /// One page.
    Page,
    /// One block.
    Block,
}

/// Recognizes migrations from the order of buffers.
#[derive(Debug, Default)]
pub(super) struct Migrations {
    entered: Option<Single>,
}

impl Migrations {
    /// A buffer put something into the balloon.
    pub(super) fn note_in(&mut self, single: Option<Single>) {
        self.entered = single;
    }

    /// A buffer took something out of the balloon; whether that completed a migration.
    pub(super) fn note_out(&mut self, single: Option<Single>) -> bool {
        let entered = self.entered.take();
        single.is_some() && entered == single
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migration_is_one_in_and_then_one_of_the_same_kind_out() {
        let mut migrations = Migrations::default();
        let mut moved = |entered, left| {
            migrations.note_in(entered);
            migrations.note_out(left)
        };
        assert!(moved(Some(Single::Page), Some(Single::Page)));
        assert!(moved(Some(Single::Block), Some(Single::Block)));
        assert!(!moved(Some(Single::Page), Some(Single::Block)));
        assert!(!moved(Some(Single::Page), None));
        assert!(!moved(None, None));
        migrations.note_in(Some(Single::Page));
        assert!(migrations.note_out(Some(Single::Page)));
        assert!(!migrations.note_out(Some(Single::Page)), "one page came in, two went out");
    }
}
