// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's goal: the host's target, plus the surplus that the host has borrowed, minus the
//! advance that it has lent.

use mm::units::{Pages, SaturatingInto};

use super::BalloonError;

/// Target, surplus and advance. The goal never exceeds RAM, nor what configuration space can
/// express.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BalloonTarget {
    pages: u32,
    surplus: u32,
    /// Never more than the target.
    advance: u32,
    /// Largest goal.
    limit: u32,
    ram: Pages,
}

impl BalloonTarget {
    /// No pages of the given RAM.
    pub(super) fn new(ram: Pages) -> Self {
        Self { pages: 0, surplus: 0, advance: 0, limit: ram.0.saturating_u32(), ram }
    }

    /// Sets the target to `target` pages, and surplus and advance to zero.
    ///
    /// # Errors
    ///
    /// [`BalloonError::TargetTooLarge`] for more pages than RAM or configuration space has.
    pub(super) fn set(&mut self, target: Pages) -> Result<(), BalloonError> {
        let pages = u32::try_from(target.0).ok().filter(|pages| *pages <= self.limit);
        self.pages = pages.ok_or(BalloonError::TargetTooLarge { target, ram: self.ram })?;
        (self.surplus, self.advance) = (0, 0);
        Ok(())
    }

    /// Sets the surplus to `surplus` pages, limited by RAM.
    pub(super) fn set_surplus(&mut self, surplus: Pages) {
        let most = self.limit - self.pages;
        self.surplus = surplus.0.saturating_u32().min(most);
    }

    /// Sets the advance to `advance` pages, limited by the target.
    pub(super) fn set_advance(&mut self, advance: Pages) {
        self.advance = advance.0.saturating_u32().min(self.pages);
    }

    /// Raises the surplus by `more` pages, limited by RAM.
    pub(super) fn raise_surplus(&mut self, more: Pages) {
        self.set_surplus(Pages(u64::from(self.surplus).saturating_add(more.0)));
    }

    /// Pages that the host wants.
    pub(super) fn pages(&self) -> Pages {
        Pages(self.pages.into())
    }

    /// Pages that are borrowed.
    pub(super) fn surplus(&self) -> Pages {
        Pages(self.surplus.into())
    }

    /// Pages that are lent to the guest.
    pub(super) fn advance(&self) -> Pages {
        Pages(self.advance.into())
    }

    /// The driver's goal, as in configuration space.
    pub(super) fn goal_on_wire(&self) -> u32 {
        self.pages + self.surplus - self.advance
    }

    /// The size that the driver should reach.
    pub(super) fn goal(&self) -> Pages {
        Pages(self.goal_on_wire().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goal_never_exceeds_ram() {
        let mut target = BalloonTarget::new(Pages(1000));
        target.set(Pages(600)).unwrap();
        target.set_surplus(Pages(300));
        assert_eq!(
            (target.pages(), target.surplus(), target.goal()),
            (Pages(600), Pages(300), Pages(900))
        );
        target.raise_surplus(Pages(u64::MAX));
        assert_eq!((target.surplus(), target.goal_on_wire()), (Pages(400), 1000));
        assert!(matches!(target.set(Pages(1001)), Err(BalloonError::TargetTooLarge { .. })));
        assert_eq!(target.goal(), Pages(1000), "a refused target changes nothing");
        target.set(Pages(0)).unwrap();
        assert_eq!((target.goal(), target.surplus()), (Pages(0), Pages(0)));
    }

    #[test]
    fn advance_lowers_the_goal_until_the_next_target() {
        let mut target = BalloonTarget::new(Pages(1000));
        target.set(Pages(600)).unwrap();
        target.set_advance(Pages(200));
        assert_eq!((target.pages(), target.goal()), (Pages(600), Pages(400)));
        target.set_surplus(Pages(400));
        assert_eq!(target.goal(), Pages(800));
        target.set_advance(Pages(u64::MAX));
        assert_eq!(target.goal(), Pages(400), "at most the target");
        target.set(Pages(500)).unwrap();
        assert_eq!(target.goal(), Pages(500));
    }

    #[test]
    fn goal_fits_configuration_space_however_large_the_guest_is() {
        let mut target = BalloonTarget::new(Pages(1 << 40));
        assert!(target.set(Pages(1 << 32)).is_err());
        target.set(Pages(u32::MAX.into())).unwrap();
        target.set_surplus(Pages(10));
        assert_eq!(target.goal_on_wire(), u32::MAX);
    }
}
