// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Published clients of Firecracker, run against Ballast. Each configures a machine,
//! starts it, waits for its console, pauses and resumes it, sets its balloon and stops it: once with
//! an initial RAM disk only, once with a disk, a network interface, vsock and entropy.
//!
//! - `machine.rs`  the machine that every client configures, and the checks that it works
//! - `fctools.rs`, `sdk.rs`, `firepilot.rs`   the clients in Rust
//! - `python.rs`, `life.py`   firecracker-python
//! - `example.rs`  a configuration file of the shape that Firecracker's start-up example has

mod example;
mod fctools;
mod firepilot;
mod machine;
mod python;
mod sdk;

use std::process::ExitCode;

use harness::runner::Test;
use harness::test;

const TESTS: &[Test] = &[
    test!(fctools::life, 120),
    test!(fctools::life_with_devices, 120),
    test!(fctools::metrics_are_understood, 120),
    test!(sdk::life, 120),
    test!(sdk::life_with_devices, 120),
    test!(firepilot::life, 120),
    test!(firepilot::life_with_devices, 120),
    test!(python::life, 240),
    test!(python::life_with_devices, 240),
    test!(example::start_up_configuration, 120),
];

fn main() -> ExitCode {
    harness::runner::main(TESTS)
}
