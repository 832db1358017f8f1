// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Places for connections: a limited number. A connection that is idle for long loses its place
//! only when another client needs it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mm::budget::{Budget, Charge};
use tokio::sync::Notify;
use tokio::time::Instant;

/// An idle connection keeps its place for this long, even if others wait for one.
const KEEPS_PLACE: Duration = Duration::from_secs(60);

/// All places, as many as the budget has.
#[derive(Debug, Clone)]
pub(super) struct Places {
    occupants: Arc<Mutex<Vec<Arc<Occupant>>>>,
    budget: Arc<Budget>,
}

/// A connection that has a place.
#[derive(Debug)]
struct Occupant {
    /// Its place in the budget, until another connection has it.
    charge: Mutex<Option<Charge>>,
    /// Since when the client has been idle; `None` during a request.
    idle_since: Mutex<Option<Instant>>,
    evicted: Notify,
}

impl Occupant {
    fn idle_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// Free places, which `budget` counts.
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { occupants: Arc::default(), budget }
    }

    /// A place, if one is free or can be taken from an idle connection.
    pub(super) fn claim(&self) -> Option<Place> {
        let mut occupants = self.occupants.lock().unwrap_or_else(PoisonError::into_inner);
        let mut charge = self.budget.try_charge(1).ok();
        if charge.is_none() {
            let longest = occupants
                .iter()
                .enumerate()
                .filter_map(|(at, occupant)| Some((occupant.idle_since().as_ref().copied()?, at)))
                .min()?;
            if longest.0.elapsed() < KEEPS_PLACE {
                return None;
            }
            let evicted = occupants.swap_remove(longest.1);
            charge = evicted.charge.lock().unwrap_or_else(PoisonError::into_inner).take();
            evicted.evicted.notify_one();
        }
        let occupant = Arc::new(Occupant {
            charge: Mutex::new(charge),
            idle_since: Mutex::new(Some(Instant::now())),
            evicted: Notify::new(),
        });
        occupants.push(Arc::clone(&occupant));
        Some(Place { places: self.clone(), occupant })
    }
}

/// One connection's place, freed on drop.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    occupant: Arc<Occupant>,
}

impl Place {
    /// Marks the client as idle, or a request as started.
    pub(super) fn set_idle(&self, idle: bool) {
        *self.occupant.idle_since() = idle.then(Instant::now);
    }

    /// Returns when the place is another's.
    pub(super) async fn evicted(&self) {
        self.occupant.evicted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut occupants = self.places.occupants.lock().unwrap_or_else(PoisonError::into_inner);
        occupants.retain(|other| !Arc::ptr_eq(other, &self.occupant));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_CONNECTIONS: usize = 10;

    #[tokio::test(start_paused = true)]
    async fn only_a_connection_that_is_idle_for_long_loses_its_place() {
        let budget = Budget::count("test", MAX_CONNECTIONS as u64);
        let places = Places::new(Arc::clone(&budget));
        let taken: Vec<Place> = (0..MAX_CONNECTIONS).filter_map(|_| places.claim()).collect();
        assert_eq!(taken.len(), MAX_CONNECTIONS);
        assert!(places.claim().is_none());

        taken[3].set_idle(false);
        tokio::time::advance(KEEPS_PLACE / 2).await;
        taken[0].set_idle(true);
        tokio::time::advance(KEEPS_PLACE / 2).await;
        // All but the first and the busy one are idle for long enough.
        let late: Vec<Place> = std::iter::from_fn(|| places.claim()).collect();
        assert_eq!(late.len(), MAX_CONNECTIONS - 2);
        taken[1].evicted().await;

        // An evicted connection's end frees no place: the place is another's by then.
        drop(taken);
        let free: Vec<Place> = std::iter::from_fn(|| places.claim()).collect();
        assert_eq!(free.len(), 2);
        drop((late, free));
        assert_eq!((budget.used(), budget.peak()), (0, MAX_CONNECTIONS as u64));
    }
}
