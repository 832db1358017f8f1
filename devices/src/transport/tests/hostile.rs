// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers that do anything.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Register(u64, u32),
    Process(u16),
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![0u64..0x120, 0u64..0x1000, any::<u64>()];
    let register = (0u64..0x48).prop_map(|word| word * 4);
    let value = prop_oneof![0u32..32, any::<u32>(), Just(0x1000), Just(0x1_0000)];
    prop_oneof![
        1 => (offset.clone(), 0usize..9).prop_map(|(at, len)| Access::Read(at, len)),
        1 => (offset, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(at, data)| Access::Write(at, data)),
        4 => (register, value.clone()).prop_map(|(at, value)| Access::Register(at, value)),
        2 => (Just(reg::STATUS), prop::sample::select(vec![0u32, 1, 3, 11, 15, 128]))
            .prop_map(|(at, value)| Access::Register(at, value)),
        1 => (0u16..4).prop_map(Access::Process),
    ]
}

proptest! {
    /// For any sequence of writes: no panic, no status without its steps, no processing but between
    /// DRIVER_OK and reset.
    #[test]
    fn any_access_leaves_the_machine_sound(accesses in prop::collection::vec(access(), 0..200)) {
        let device = Arc::new(DeviceLock::new(Recorder::default()));
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let transport = MmioTransport::new(memory(), device.clone(), irq).unwrap();
        let status = || {
            let mut word = [0; 4];
            transport.read(reg::STATUS, &mut word);
            u32::from_le_bytes(word)
        };
        for access in accesses {
            let processed = device.lock().processed.len();
            match access {
                Access::Read(at, len) => transport.read(at, &mut vec![0; len]),
                Access::Write(at, data) => transport.write(at, &data),
                Access::Register(at, value) => transport.write(at, &value.to_le_bytes()),
                Access::Process(queue) => {
                    transport.process_queue(queue);
                    let ran = device.lock().processed.len() > processed;
                    prop_assert_eq!(ran, status() & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK);
                }
            }
            let status = status();
            for (bit, needs) in
                [(DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)]
            {
                prop_assert!(status & bit == 0 || status & needs != 0, "status {:#x}", status);
            }
            let active = device.lock().features;
            prop_assert_eq!(active.is_some(), status & DRIVER_OK != 0);
            if let Some(features) = active {
                prop_assert_eq!(features & !(VERSION_1 | EVENT_IDX | FANCY), 0);
                prop_assert!(features & VERSION_1 != 0);
            }
        }
    }

    /// A chain of any shape is walked to its end and no further, also one whose buffers are the rings
    /// themselves: such contents may be rejected but do no harm.
    #[test]
    fn any_descriptor_table_is_survived(
        table in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec(0u16..16, 1..16),
    ) {
        use crate::virtio::{ChainMemory, Segments};
        let mut rig = Rig::new();
        rig.driver.probe(VERSION_1, 2);
        for (number, (addr, len, flags, next)) in (0..).zip(table) {
            // Mostly inside RAM, so that some chains are good.
            let addr = if addr % 4 == 0 { addr } else { addr % (1 << 20) };
            rig.driver.write_descriptor(1, number, MockDescriptor { addr, len: len % 5000, flags, next });
        }
        heads.iter().for_each(|head| rig.driver.make_available(1, *head));
        let mut device = rig.device.lock();
        let queue = &mut device.queues[1];
        let mut written = false;
        for _ in 0..queue.size() {
            let chain = match queue.pop() {
                Ok(Some(chain)) => chain,
                Ok(None) => break,
                // Only the test's own writing can have spoilt a ring.
                Err(err) => {
                    prop_assert!(written, "{err}");
                    break;
                }
            };
            let mem = Arc::clone(queue.mem());
            queue.undo_pop();
            let again = queue.pop().unwrap().unwrap();
            prop_assert_eq!(again.head_index(), chain.head_index());
            let mut buffer = ChainMemory::default();
            let refilled = buffer.refill(again, queue.size());
            let segments = Segments::collect(chain, queue.size());
            prop_assert_eq!(refilled.is_ok(), segments.is_ok());
            if let Ok(segments) = segments {
                prop_assert!(segments.readable.len() + segments.writable.len() <= 16);
                let mut data = vec![0; 100];
                let got = segments.read(&mem, 3, &mut data) as u64;
                prop_assert_eq!(got, segments.readable_len().saturating_sub(3).min(100));
                // The same bytes by their addresses in this process.
                prop_assert_eq!(buffer.readable.len() as u64, segments.readable_len());
                prop_assert_eq!(buffer.writable.len() as u64, segments.writable_len());
                let mut same = vec![0; 100];
                prop_assert_eq!(buffer.readable.read(3, &mut same) as u64, got);
                prop_assert_eq!(&same, &data);
                let put = segments.write(&mem, 3, &data) as u64;
                prop_assert_eq!(put, segments.writable_len().saturating_sub(3).min(100));
                written |= put > 0;
            }
        }
    }
}
