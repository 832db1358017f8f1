// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers of a hostile driver for random numbers. The invariants are in `chains.rs`; in addition
//! every buffer is returned.
#![no_main]

mod chains;

use std::sync::Arc;

use arbitrary::Arbitrary;
use chains::{Rig, Shape, memory};
use devices::entropy::Entropy;
use devices::virtio::{DeviceLock, RateLimiter};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
enum Step {
    Chain { header: Vec<u8>, shape: Shape },
    Notify,
    Corrupt { number: u8, entry: [u8; 16] },
    Run,
    Reset,
}

fuzz_target!(|input: (u64, Vec<Step>)| {
    let (features, steps) = input;
    let mem = memory();
    let device = Entropy::new(RateLimiter::unlimited()).expect("a device");
    let mut rig = Rig::new(&mem, Arc::new(DeviceLock::new(device)), 1, features);
    for step in steps.iter().take(64) {
        match step {
            Step::Chain { header, shape } => {
                // Random numbers are written into what follows: no status.
                let shape = shape.without_status();
                rig.add(0, &header[..header.len().min(64)], &shape);
            }
            Step::Notify => rig.driver.notify(0),
            Step::Corrupt { number, entry } => rig.corrupt(0, *number, *entry),
            Step::Run => rig.run(),
            Step::Reset => rig.probe(),
        }
    }
    rig.driver.notify(0);
    rig.run();
    assert_eq!(rig.owed(0), 0, "chains are kept");
    rig.driver.reset();
});
