// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From an address that a vCPU touched to the device that answers there.
//!
//! A bus is filled while the machine is built and never changes afterwards, so vCPUs look up
//! devices without a lock. Devices have their own locks.

use std::sync::Arc;

use devices::legacy::{KeyboardController, PowerRegisters, SerialPort};
use devices::transport::MmioTransport;

/// A device on a bus. Guests choose offset and length: any must be survived.
pub trait BusDevice: Send + Sync {
    /// Reads at `offset` of the device into `data`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset` of the device.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Devices overlap.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("address range {start:#x} to {end:#x} overlaps an existing device or is empty")]
pub struct BusError {
    /// First address.
    pub start: u64,
    /// First address after.
    pub end: u64,
}

struct Slot {
    start: u64,
    end: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address: ports, or guest-physical memory.
#[derive(Default)]
pub struct Bus {
    /// Ascending and disjoint.
    slots: Vec<Slot>,
}

impl Bus {
    /// Puts `device` at `len` addresses from `start`.
    ///
    /// # Errors
    ///
    /// [`BusError`]: the range is empty or overlaps another device.
    pub fn insert(
        &mut self,
        start: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let end = start.saturating_add(len);
        let at = self.slots.partition_point(|slot| slot.end <= start);
        if start >= end || self.slots.get(at).is_some_and(|next| next.start < end) {
            return Err(BusError { start, end });
        }
        self.slots.insert(at, Slot { start, end, device });
        Ok(())
    }

    /// A vCPU reads; where there is no device, all bits read as one.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A vCPU writes; where there is no device, the write is ignored.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// The device that has all of the `len` bytes at `address`, and their offset there.
    fn find(&self, address: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let at = self.slots.partition_point(|slot| slot.end <= address);
        let slot = self.slots.get(at).filter(|slot| slot.start <= address)?;
        let fits = len as u64 <= slot.end - address;
        fits.then(|| (slot.device.as_ref(), address - slot.start))
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        Self::read(self, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        Self::write(self, offset, data);
    }
}

/// Devices of the port bus number their registers by 16 bits, and so does the bus.
macro_rules! port_device {
    ($device:ty) => {
        impl BusDevice for $device {
            fn read(&self, offset: u64, data: &mut [u8]) {
                match u16::try_from(offset) {
                    Ok(offset) => Self::read(self, offset, data),
                    Err(_) => data.fill(0xff),
                }
            }

            fn write(&self, offset: u64, data: &[u8]) {
                if let Ok(offset) = u16::try_from(offset) {
                    Self::write(self, offset, data);
                }
            }
        }
    };
}
port_device!(KeyboardController);
port_device!(PowerRegisters);
port_device!(SerialPort);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// Answers reads with its name, and remembers the last write.
    struct Named(u8, Mutex<Option<(u64, Vec<u8>)>>);

    impl BusDevice for Named {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(self.0);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            *self.1.lock().unwrap() = Some((offset, data.to_vec()));
        }
    }

    fn named(name: u8) -> Arc<Named> {
        Arc::new(Named(name, Mutex::new(None)))
    }

    #[test]
    fn accesses_reach_whom_they_are_for() {
        let mut bus = Bus::default();
        let (low, high) = (named(1), named(2));
        bus.insert(0x2000, 0x1000, high.clone()).unwrap();
        bus.insert(0x1000, 0x1000, low.clone()).unwrap();
        bus.write(0x1ffc, &[7; 4]);
        assert_eq!(*low.1.lock().unwrap(), Some((0xffc, vec![7; 4])));
        bus.write(0x1ffe, &[7; 4]);
        assert_eq!(*high.1.lock().unwrap(), None, "an access across devices reaches none");
        let mut data = [0; 2];
        bus.read(0x2000, &mut data);
        assert_eq!(data, [2, 2]);
        bus.read(0x3000, &mut data);
        assert_eq!(data, [0xff, 0xff]);
        bus.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = Bus::default();
        bus.insert(10, 10, named(1)).unwrap();
        for (start, len) in [(10, 10), (5, 6), (19, 1), (0, 100), (12, 2), (30, 0)] {
            assert!(bus.insert(start, len, named(2)).is_err(), "{start}, {len}");
        }
        bus.insert(0, 10, named(3)).unwrap();
        bus.insert(20, u64::MAX, named(4)).unwrap();
    }

    proptest! {
        #[test]
        fn lookups_agree_with_a_linear_search(
            ranges in prop::collection::vec((0u64..200, 1u64..20), 1..20),
            address in 0u64..240,
        ) {
            let mut bus = Bus::default();
            let mut taken: Vec<(u64, u64, u8)> = Vec::new();
            for (name, (start, len)) in (1u8..).zip(ranges) {
                let free = taken.iter().all(|(s, e, _)| start + len <= *s || *e <= start);
                prop_assert_eq!(bus.insert(start, len, named(name)).is_ok(), free);
                if free {
                    taken.push((start, start + len, name));
                }
            }
            let expected = taken.iter().find(|(s, e, _)| (*s..*e).contains(&address));
            let mut byte = [0];
            bus.read(address, &mut byte);
            prop_assert_eq!(byte[0], expected.map_or(0xff, |(_, _, name)| *name));
        }
    }
}
