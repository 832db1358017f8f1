// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames of a hostile driver, and buffers for frames of the host's. The invariants are in
//! `chains.rs`; in addition every sent frame is returned.
#![no_main]

mod chains;

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use arbitrary::Arbitrary;
use chains::{Rig, Shape, memory};
use devices::net::{Link, Net, NetConfig, Tap};
use devices::virtio::{DeviceLock, QueueHost, RateLimiter};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
enum Step {
    /// Queues 0 and 2 receive, 1 and 3 send, 4 is for control.
    Chain {
        queue: u8,
        header: Vec<u8>,
        shape: Shape,
    },
    Notify(u8),
    Corrupt {
        queue: u8,
        number: u8,
        entry: [u8; 16],
    },
    /// A frame from the host, with its header.
    Arrives {
        pair: bool,
        len: u16,
    },
    Run,
    Reset,
}

#[derive(Debug, Arbitrary)]
struct Input {
    features: u64,
    steps: Vec<Step>,
}

fuzz_target!(|input: Input| {
    let mem = memory();
    let pairs: Vec<_> = (0..2).map(|_| UnixDatagram::pair().expect("sockets")).collect();
    let taps = pairs.iter().map(|(ours, theirs)| {
        ours.set_nonblocking(true).expect("a socket");
        theirs.set_nonblocking(true).expect("a socket");
        Link::Tap(Tap::from_socket(ours.try_clone().expect("a descriptor").into()))
    });
    let config = NetConfig {
        links: taps.collect(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: Some(1500),
        rx_limiter: RateLimiter::unlimited(),
        tx_limiter: RateLimiter::unlimited(),
        responder: None,
vhost: None,
    };
    // All queues are set up, so MQ is taken: their roles depend on it.
    let features = input.features | 1 << 22 | 1 << 17;
    let device = Net::new(config).expect("a device");
    let mut rig = Rig::new(&mem, Arc::new(DeviceLock::new(device)), 5, features);
    let mut frame = [0; 1 << 16];
    for step in input.steps.iter().take(64) {
        match step {
            Step::Chain { queue, header, shape } => {
                let queue = u16::from(queue % 5);
                let shape =
                    if queue == 4 { shape.with_status_first() } else { shape.without_status() };
                rig.add(queue, &header[..header.len().min(128)], &shape);
            }
            Step::Notify(queue) => rig.driver.notify((queue % 5).into()),
            Step::Corrupt { queue, number, entry } => rig.corrupt((*queue).into(), *number, *entry),
            Step::Arrives { pair, len } => {
                let _ = pairs[usize::from(*pair)].1.send(&frame[..usize::from(*len)]);
                rig.driver.transport().process_queue(2 * u16::from(*pair));
            }
            Step::Run => rig.run(),
            Step::Reset => rig.probe(),
        }
        // A host that takes what it is sent.
        for (_, theirs) in &pairs {
            while theirs.recv(&mut frame).is_ok() {}
        }
    }
    for queue in [1, 3, 4] {
        rig.driver.notify(queue);
    }
    rig.run();
    assert_eq!([1, 3, 4].map(|queue| rig.owed(queue)), [0; 3], "chains are kept");
    rig.driver.reset();
});
