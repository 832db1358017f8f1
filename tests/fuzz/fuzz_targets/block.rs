// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests to a disk by a hostile driver, with both engines, while the host replaces images. The
//! invariants are in `chains.rs`; in addition every request completes.
#![no_main]

mod chains;

use std::fs::File;
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use chains::{Rig, Shape, memory};
use devices::block::{BlockConfig, BlockDevice, CacheType, DiskImage, IoEngine};
use devices::virtio::{DeviceLock, QueueHost, RateLimiter};
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::tempfile::TempFile;

const SECTORS: u64 = 4096;

#[derive(Debug, Arbitrary)]
enum Step {
    Request { queue: u8, kind: u8, sector: Sector, shape: Shape },
    Raw { queue: u8, header: Vec<u8>, shape: Shape },
    Notify(u8),
    Corrupt { queue: u8, number: u8, entry: [u8; 16] },
    Replace { small: bool },
    Run,
    Reset,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Sector {
    Disk(u16),
    Any(u64),
}

#[derive(Debug, Arbitrary)]
struct Input {
    ring: bool,
    write_back: bool,
    read_only: bool,
    features: u64,
    steps: Vec<Step>,
}

/// Disks, made once: each run has them by descriptors of its own.
static DISKS: LazyLock<[File; 2]> = LazyLock::new(|| {
    [SECTORS, 8].map(|sectors| {
        let file = TempFile::new().expect("a file").into_file();
        file.set_len(sectors * 512).expect("its size");
        file
    })
});

fn disk(small: bool) -> File {
    DISKS[usize::from(small)].try_clone().expect("a descriptor")
}

fuzz_target!(|input: Input| {
    let mem = memory();
    let config = BlockConfig {
        image: DiskImage::raw(disk(false), input.read_only).expect("an image"),
        cache: if input.write_back { CacheType::Writeback } else { CacheType::Unsafe },
        engine: if input.ring { IoEngine::Async } else { IoEngine::Sync },
        limiter: RateLimiter::unlimited(),
        queues: 2,
        workers: 1,
    };
    let device = BlockDevice::new(config).expect("a device");
    let handle = device.handle();
    let mut rig = Rig::new(&mem, Arc::new(DeviceLock::new(device)), 2, input.features);
    for step in input.steps.iter().take(64) {
        match step {
            Step::Request { queue, kind, sector, shape } => {
                let sector = match *sector {
                    Sector::Disk(sector) => u64::from(sector) % (SECTORS + 8),
                    Sector::Any(sector) => sector,
                };
                let kind = u32::from(kind % 16).to_le_bytes();
                let header = [&kind[..], &[0; 4], &sector.to_le_bytes()].concat();
                rig.add((*queue).into(), &header, shape);
            }
            Step::Raw { queue, header, shape } => {
                rig.add((*queue).into(), &header[..header.len().min(64)], shape);
            }
            Step::Notify(queue) => rig.driver.notify((queue % 2).into()),
            Step::Corrupt { queue, number, entry } => rig.corrupt((*queue).into(), *number, *entry),
            // Refused where the image is open otherwise; that is no fault.
            Step::Replace { small } => drop(handle.replace(disk(*small))),
            Step::Run => rig.run(),
            Step::Reset => rig.probe(),
        }
    }
    rig.driver.notify(0);
    rig.driver.notify(1);
    rig.run();
    // The host's disk may take a while.
    let mut rounds = 0;
    while rig.owed(0) + rig.owed(1) > 0 {
        rig.driver.transport().process_queue(0);
        rig.run();
        rounds += 1;
        assert!(rounds < 1_000_000, "{} requests are not answered", rig.owed(0) + rig.owed(1));
        std::thread::yield_now();
    }
    rig.driver.reset();
});
