// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lock of a device, which knows how long it was held.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::hold::{Hold, LongestHold};

/// A device and its mutex. Every holder is on the record: vCPUs, event loops, and the threads that
/// answer requests.
///
/// ```
/// use std::sync::Arc;
///
/// use devices::virtio::DeviceLock;
///
/// let device = Arc::new(DeviceLock::new(vec![1, 2, 3]));
/// device.lock().push(4);
/// println!("held for {} us at most", device.longest_hold().micros());
/// ```
#[derive(Default)]
pub struct DeviceLock<T: ?Sized> {
    longest: LongestHold,
    device: Mutex<T>,
}

impl<T> DeviceLock<T> {
    /// An unlocked `device`.
    pub fn new(device: T) -> Self {
        Self { longest: LongestHold::new(), device: Mutex::new(device) }
    }
}

impl<T: ?Sized> DeviceLock<T> {
    /// Waits for the lock. Poisoning is ignored: a device validates its state.
    pub fn lock(&self) -> Locked<'_, T> {
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { _hold: self.longest.start(), device }
    }

    /// The longest that the lock was held; waiting for it is not counted.
    pub fn longest_hold(&self) -> &LongestHold {
        &self.longest
    }
}

impl<T: ?Sized> fmt::Debug for DeviceLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the device, which may be locked by this very thread.
        f.debug_struct("DeviceLock").field("longest", &self.longest).finish_non_exhaustive()
    }
}

/// A device that is locked until this is dropped.
#[must_use = "the device is free again when this is dropped"]
pub struct Locked<'a, T: ?Sized> {
    // First, so that the hold ends before the lock is free.
    _hold: Hold<'a>,
    device: MutexGuard<'a, T>,
}

impl<T: ?Sized> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.device
    }
}

impl<T: ?Sized> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.device
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_holder_is_on_the_record() {
        let device = Arc::new(DeviceLock::new(0));
        let other: Arc<DeviceLock<dyn fmt::Debug + Send>> = device.clone();
        *device.lock() += 1;
        assert!(device.longest_hold().micros() < 3_600_000_000);
        let seen = std::thread::spawn(move || {
            let device = other.lock();
            std::thread::sleep(Duration::from_millis(2));
            format!("{:?}", &*device)
        });
        assert_eq!(seen.join().unwrap(), "1");
        assert!(device.longest_hold().micros() >= 2000, "the other thread's hold");
    }

    #[test]
    fn a_panic_of_a_holder_leaves_the_device_to_others() {
        let device = Arc::new(DeviceLock::new(1));
        let other = Arc::clone(&device);
        let panicked = std::thread::spawn(move || {
            let _device = other.lock();
            panic!("in the middle of a round");
        });
        assert!(panicked.join().is_err());
        assert_eq!(*device.lock(), 1);
    }
}
