// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any sequence of register accesses and notifications on a virtio-mmio window with a balloon
//! behind it, in guest memory of any contents.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devices::balloon::{Balloon, BalloonConfig, Discarded, MemoryReclaim};
use devices::transport::{MmioTransport, register};
use devices::virtio::{Deadline, DeviceLock, GuestMemoryMmap, QueueHost};
use libfuzzer_sys::fuzz_target;
use mm::budget::Budget;
use mm::guest_ram::GuestRamError;
use mm::units::{Bytes, GuestRange, Pages, Pfn};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM_PAGES: u64 = 1024;

#[derive(Debug, Arbitrary)]
enum Access {
    Read {
        offset: u16,
        len: u8,
    },
    Write {
        offset: u16,
        data: [u8; 9],
        len: u8,
    },
    /// A register by its number, so that most inputs reach one.
    Register {
        number: u8,
        value: u32,
    },
    /// The next step of the status machine.
    Climb,
    /// Rings at places that may overlap each other and anything else.
    SetUp {
        queue: u8,
        size: u8,
        table: u16,
        available: u16,
        used: u16,
    },
    Memory {
        addr: u32,
        data: [u8; 16],
    },
    /// A chain of one descriptor, of any address and length, made available many times over.
    Chains {
        queue: u8,
        table: u16,
        available: u16,
        addr: u64,
        len: u32,
        flags: u16,
        count: u8,
    },
    Process(u8),
    Timer,
}

/// Memory that only checks the ranges that it is to give back.
struct Memory;

impl MemoryReclaim for Memory {
    fn ram(&self) -> Vec<GuestRange> {
        vec![GuestRange::new(Pfn(0), Pages(RAM_PAGES)).expect("RAM")]
    }
    fn discard(&mut self, ranges: &[GuestRange]) -> Result<Discarded, GuestRamError> {
        let mut end = Pfn(0);
        let mut asked = 0;
        for run in ranges {
            assert!(run.start() >= end && run.end() <= Pfn(RAM_PAGES));
            end = run.end();
            asked += run.bytes().0;
        }
        Ok(Discarded { asked: Bytes(asked), freed: Bytes(asked), ..Discarded::default() })
    }
    fn allow_huge(&mut self, range: GuestRange, _allow: bool) -> Result<(), GuestRamError> {
        assert!(range.end() <= Pfn(RAM_PAGES));
        Ok(())
    }
}

fuzz_target!(|input: (bool, Vec<Access>)| {
    let (cut, accesses) = input;
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (RAM_PAGES as usize) << 12)]);
    let mem = Arc::new(mem.expect("guest memory"));
    let config = BalloonConfig {
        stats_interval: std::time::Duration::from_secs(1),
        free_page_hinting: true,
        free_page_reporting: true,
        ..BalloonConfig::default()
    };
    let balloon = Balloon::new(config, Box::new(Memory), &Budget::count("balloon-mappings", 64))
        .expect("a balloon");
    let balloon = Arc::new(DeviceLock::new(balloon));
    let irq = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let transport = MmioTransport::new(mem.clone(), balloon.clone(), irq).expect("a transport");
    // In rounds that are cut after each step, or not.
    let deadline = if cut { || Deadline::of_work(1) } else { || Deadline::of_work(Deadline::WORK) };
    let transport = transport.with_deadline(deadline);
    let read = |offset| {
        let mut word = [0; 4];
        transport.read(offset, &mut word);
        u32::from_le_bytes(word)
    };
    let write = |offset, value: u32| transport.write(offset, &value.to_le_bytes());

    for access in accesses.into_iter().take(500) {
        match access {
            Access::Read { offset, len } => {
                transport.read(offset.into(), &mut vec![0; usize::from(len % 17)]);
            }
            Access::Write { offset, data, len } => {
                transport.write(offset.into(), &data[..usize::from(len % 10)]);
            }
            Access::Register { number, value } => write(u64::from(number) * 4, value),
            Access::Climb => {
                let status = read(register::STATUS);
                if status == 3 {
                    for half in [0, 1] {
                        write(register::DEVICE_FEATURES_SEL, half);
                        write(register::DRIVER_FEATURES_SEL, half);
                        write(register::DRIVER_FEATURES, read(register::DEVICE_FEATURES));
                    }
                }
                let next = [(0, 1), (1, 3), (3, 11), (11, 15)];
                let next = next.into_iter().find(|(at, _)| *at == status);
                write(register::STATUS, next.map_or(0, |(_, next)| next));
            }
            Access::SetUp { queue, size, table, available, used } => {
                write(register::QUEUE_SEL, (queue % 8).into());
                write(register::QUEUE_NUM, 1 << (size % 9));
                write(register::QUEUE_DESC_LOW, u32::from(table) * 16);
                write(register::QUEUE_DRIVER_LOW, u32::from(available) * 2);
                write(register::QUEUE_DEVICE_LOW, u32::from(used) * 4);
                write(register::QUEUE_READY, 1);
            }
            Access::Memory { addr, data } => {
                let _ = mem.write_slice(&data, GuestAddress(u64::from(addr) % (RAM_PAGES << 12)));
            }
            Access::Chains { queue, table, available, addr, len, flags, count } => {
                let (table, available) = (u64::from(table) * 16, u64::from(available) * 2);
                let entry =
                    [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &[0; 2]];
                let _ = mem.write_slice(&entry.concat(), GuestAddress(table));
                // All heads are descriptor 0.
                let _ = mem.write_slice(&[0; 256], GuestAddress(available + 4));
                let index = u16::from(count);
                let _ = mem.write_obj(index, GuestAddress(available + 2));
                write(register::QUEUE_NOTIFY, (queue % 8).into());
            }
            Access::Process(queue) => transport.process_queue(queue.into()),
            Access::Timer => balloon.lock().on_timer(),
        }
    }
    balloon.lock().validate().expect("the record agrees with itself");
});
