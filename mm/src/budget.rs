// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Budgets: limits on what a guest or a client can make the host spend.
//!
//! A [`Budget`] has a name, a unit and a limit. A spender takes a [`Charge`] first and stores it in
//! the object that it pays for: dropping the object returns the amount.
//!
//! ```
//! use mm::budget::Budget;
//!
//! let budget = Budget::bytes("gpu-host", 4096);
//! let charge = budget.try_charge(3000)?;
//! assert_eq!(budget.used(), 3000);
//! assert!(budget.try_charge(2000).is_err());
//! drop(charge);
//! assert_eq!((budget.used(), budget.peak(), budget.refusals()), (0, 3000, 1));
//! # Ok::<(), mm::budget::BudgetError>(())
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of host memory.
    Bytes,
    /// Things: mappings, threads, resources.
    Count,
}

/// A charge that a budget refused: the limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct BudgetError {
    /// Name of the budget.
    pub budget: &'static str,
    /// What `asked`, `used` and `limit` count.
    pub unit: Unit,
    /// Amount asked for.
    pub asked: u64,
    /// Amount in use at that moment.
    pub used: u64,
    /// Largest amount that may be in use.
    pub limit: u64,
}

impl fmt::Display for BudgetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { budget, unit, asked, used, limit } = self;
        let unit = match unit {
            Unit::Bytes => " bytes",
            Unit::Count => "",
        };
        write!(f, "budget {budget}: cannot charge {asked}{unit}, {used} of {limit} in use")
    }
}

/// A named, thread-safe limit on an amount in use.
///
/// All methods may be called from any thread; none blocks.
#[derive(Debug)]
pub struct Budget {
    name: &'static str,
    unit: Unit,
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
    refusals: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn bytes(name: &'static str, limit: u64) -> Arc<Self> {
        Self::new(name, Unit::Bytes, limit)
    }

    /// A budget of `limit` items.
    pub fn count(name: &'static str, limit: u64) -> Arc<Self> {
        Self::new(name, Unit::Count, limit)
    }

    fn new(name: &'static str, unit: Unit, limit: u64) -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self { name, unit, limit, used: zero(), peak: zero(), refusals: zero() })
    }

    /// Its name, as in metrics and errors.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it counts.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Largest amount that may be in use.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Amount in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Amount that is left.
    pub fn left(&self) -> u64 {
        self.limit - self.used()
    }

    /// Highest amount in use so far.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Charges refused so far.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Takes `amount` until the charge is dropped. An amount of 0 always succeeds.
    ///
    /// # Errors
    ///
    /// [`BudgetError`] when less than `amount` is left; nothing is taken then.
    pub fn try_charge(self: &Arc<Self>, amount: u64) -> Result<Charge, BudgetError> {
        self.take(amount)?;
        Ok(Charge { budget: Arc::clone(self), amount })
    }

    fn take(&self, amount: u64) -> Result<(), BudgetError> {
        let add = |used: u64| used.checked_add(amount).filter(|after| *after <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(before) => {
                self.peak.fetch_max(before + amount, Ordering::Relaxed);
                Ok(())
            }
            Err(used) => {
                self.refusals.fetch_add(1, Ordering::Relaxed);
                let Self { name: budget, unit, limit, .. } = *self;
                Err(BudgetError { budget, unit, asked: amount, used, limit })
            }
        }
    }

    fn give_back(&self, amount: u64) {
        self.used.fetch_sub(amount, Ordering::Relaxed);
    }
}

/// An amount taken from a [`Budget`]; dropping it returns the amount.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    amount: u64,
}

impl Charge {
    /// The amount taken, in the budget's unit.
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// The budget that it was taken from.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Changes the amount.
    ///
    /// # Errors
    ///
    /// [`BudgetError`] when the budget has too little left for a larger amount; the charge is then
    /// unchanged.
    pub fn resize(&mut self, amount: u64) -> Result<(), BudgetError> {
        match amount.checked_sub(self.amount) {
            Some(more) => self.budget.take(more)?,
            None => self.budget.give_back(self.amount - amount),
        }
        self.amount = amount;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_beyond_the_limit_and_takes_nothing() {
        let budget = Budget::bytes("test", 100);
        let first = budget.try_charge(60).unwrap();
        let error = budget.try_charge(41).unwrap_err();
        assert_eq!((error.asked, error.used, error.limit), (41, 60, 100));
        assert_eq!(error.to_string(), "budget test: cannot charge 41 bytes, 60 of 100 in use");
        assert!(budget.try_charge(u64::MAX).is_err());
        let second = budget.try_charge(40).unwrap();
        assert_eq!((budget.used(), budget.left(), budget.refusals()), (100, 0, 2));
        drop((first, second));
        assert_eq!((budget.used(), budget.peak()), (0, 100));
    }

    #[test]
    fn a_charge_that_cannot_grow_stays_as_it_was() {
        let budget = Budget::count("test", 10);
        let mut charge = budget.try_charge(4).unwrap();
        charge.resize(10).unwrap();
        assert!(charge.resize(11).is_err());
        assert_eq!((charge.amount(), budget.used()), (10, 10));
        charge.resize(1).unwrap();
        assert_eq!(budget.used(), 1);
    }

    #[test]
    fn threads_never_exceed_the_limit_together() {
        let budget = Budget::count("test", 7);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for amount in (0..2000).map(|n| n % 5) {
                        let _charge = budget.try_charge(amount);
                        assert!(budget.used() <= 7);
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
        assert!(budget.peak() <= 7);
    }

    proptest! {
        /// Against a model that is a list of amounts.
        #[test]
        fn used_is_the_sum_of_all_charges(asked in prop::collection::vec((0..40u64, any::<bool>()), 0..60)) {
            let budget = Budget::bytes("test", 100);
            let mut charges: Vec<Charge> = Vec::new();
            for (amount, take) in asked {
                if take {
                    let fits = charges.iter().map(Charge::amount).sum::<u64>() + amount <= 100;
                    let charge = budget.try_charge(amount);
                    prop_assert_eq!(charge.is_ok(), fits);
                    charges.extend(charge);
                } else {
                    charges.pop();
                }
                prop_assert_eq!(budget.used(), charges.iter().map(Charge::amount).sum::<u64>());
            }
        }
    }
}
