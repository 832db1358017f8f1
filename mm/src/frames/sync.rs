// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Atomics (loom's under `cfg(loom)`), a spinning back-off and a small lock.
//!
//! [`SpinLock`] guards what is held for tens of nanoseconds: a thread's cache of frames, the free
//! list of a size class. An uncontended lock and unlock is one compare-exchange and one store,
//! about half of what `std::sync::Mutex` takes, and there are two such pairs in the order-0 fast
//! path. A waiter spins briefly and then gives its time slice away, so a preempted holder on a
//! busy machine costs a scheduling round, not a livelock.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Waits a little longer at each call: first in the processor, then in the scheduler.
#[derive(Default)]
pub(crate) struct Backoff {
    step: u32,
}

impl Backoff {
    const SPIN_STEPS: u32 = 6;

    pub(crate) fn new() -> Self {
        Self::default()
    }

    #[cfg(not(loom))]
    pub(crate) fn snooze(&mut self) {
        if self.step < Self::SPIN_STEPS {
            for _ in 0..1u32 << self.step {
                std::hint::spin_loop();
            }
            self.step += 1;
        } else {
            std::thread::yield_now();
        }
    }

    #[cfg(loom)]
    pub(crate) fn snooze(&mut self) {
        self.step = self.step.saturating_add(1).min(Self::SPIN_STEPS);
        loom::thread::yield_now();
    }
}

/// A mutual-exclusion lock for very short critical sections. Not recursive.
pub(crate) struct SpinLock<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through a `SpinGuard`, and at most one guard exists at a time
// (`lock` and `try_lock` return one only after changing `locked` from false to true), so sharing
// the lock hands the value from thread to thread and never to two at once.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> SpinGuard<'_, T> {
        let mut backoff = Backoff::new();
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            while self.locked.load(Ordering::Relaxed) {
                backoff.snooze();
            }
        }
    }

    #[inline]
    pub(crate) fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        self.locked
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            .then(|| SpinGuard { lock: self, stays: PhantomData })
    }
}

pub(crate) struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
    /// Keeps the guard from being shared: `T` need not be `Sync`.
    stays: PhantomData<*const ()>,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one (see `Sync for SpinLock`), so no `&mut` exists
        // elsewhere, and the borrow ends with the borrow of the guard.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and the guard itself is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.locked.store(false, Ordering::Release);
    }
}
