// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask`: all of the project's automation. It must not use the other crates: it builds and
//! runs them.
//!
//! - `test/`      all tests, step by step
//! - `bench.rs`, `bench_pieces.rs` Ballast compared with its peers; some benches machine by machine
//! - `hold/`       lock holds and costs of the monitor; natively
//! - `clients.rs`  clients of Firecracker in front of Ballast
//! - `count.rs`    how many tests passed and failed
//! - `kernel/`    the guest kernel: sources, patches, configuration, build, cache
//! - `dist.rs`     the distributed binary
//! - `build.rs`    the programs that run in guests and in the outer machine
//! - `testbed.rs`, `outer.rs`   Debian's kernel; a machine with a usable KVM
//! - `heartbeat.rs`   whether that machine still runs
//! - `payload.rs`  what guests are started from, and a program run beside it
//! - `guest_tests.rs` the tests that boot guests
//! - `tiny_guest.rs`  guests of a few instructions
//! - `rootfs.rs`, `cpio.rs`     initial RAM disks
//! - `image/`     a Debian root file system for guests to work in
//! - `tap.rs`     a network interface of the host for a guest
//! - `apt.rs`, `debian.rs`      Debian packages, installed where missing, or only unpacked
//! - `run.rs`     running other programs
//! - `paths.rs`, `lock.rs`, `error.rs`   paths; locks between xtasks; the error type

mod apt;
mod bench;
mod bench_pieces;
mod build;
mod clients;
mod count;
mod cpio;
mod debian;
mod dist;
mod error;
mod guest_tests;
mod heartbeat;
mod hold;
mod image;
mod kernel;
mod lock;
mod outer;
mod paths;
mod payload;
mod rootfs;
mod run;
mod tap;
mod test;
mod testbed;
mod tiny_guest;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use build::Profile;
use error::Result;
use guest_tests::GuestTests;
use outer::Size;
use payload::Payload;

/// Ballast's automation
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show Ballast's effect on host memory with a real guest
    Demo {
        #[command(flatten)]
        kernel: payload::KernelChoice,
    },
    /// Run all tests; ends with a line `N passed, N failed`
    Test(test::Options),
    /// Check formatting, lists and lengths of files, wording, licences and dependencies (a part of
    /// `test`; takes seconds)
    Lint,
    /// Measure Ballast and its peers
    Bench(bench::Options),
    /// Build the guest kernel; the last line of standard output is the path of its vmlinux
    Kernel(kernel::Options),
    /// Compile the files that the kernel patches touch in other configurations, with additional
    /// warnings
    KernelMatrix(kernel::Options),
    /// Run the KUnit tests of the kernel patches, in QEMU
    KernelUnitTests(kernel::Options),
    /// Write the kernel patches as signed-off mails
    KernelSeries(kernel::send::Options),
    /// Prepare the outer machine: install QEMU, unpack Debian's kernel into the cache
    Testbed,
    /// Build the static binary; the last line of standard output is its path
    Dist(dist::Options),
    /// Build a Debian root file system, or the initial RAM disks of test guests
    Rootfs(RootfsOptions),
    /// Create or remove a host network interface for a guest, as root
    Tap(tap::Options),
    /// Run the tests that boot real guests (a part of `test`)
    GuestTests(GuestTestOptions),
    /// Run published clients of Firecracker against Ballast (a part of `test`)
    Clients(clients::Options),
    /// Run a command where KVM works: on this machine or in the emulated outer machine
    Outer(OuterOptions),
}

/// What starts `resources/debian-rootless.json`, which needs no interface of the host.
const DEBIAN_GUEST: &str = "cargo xtask rootfs debian && \
    cargo run --release -p ballast-vmm -- run --config resources/debian-rootless.json";

#[derive(Debug, clap::Args)]
struct RootfsOptions {
    #[command(subcommand)]
    kind: Option<RootfsKind>,
}

#[derive(Debug, Subcommand)]
enum RootfsKind {
    /// A Debian 12 image and our kernel in target/debian, for the configurations in resources/; the
    /// last line of standard output is the image's path
    Debian {
        #[command(flatten)]
        image: image::Options,
        #[command(flatten)]
        kernel: payload::KernelChoice,
    },
}

#[derive(Debug, clap::Args)]
struct GuestTestOptions {
    #[command(flatten)]
    kernel: payload::KernelChoice,
    /// Duration of stress tests, in seconds
    #[arg(long, value_name = "SECONDS")]
    stress: Option<u64>,
    /// vCPUs of stress tests' guests [default: as many as the machine that runs them has, at most 2]
    #[arg(long, value_name = "N")]
    stress_cpus: Option<u32>,
    /// Outer machines that share the tests, where guests cannot run on this machine
    #[arg(long, value_name = "N", default_value_t = 1)]
    machines: u32,
    /// Run only tests whose names contain one of these
    filters: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
struct OuterOptions {
    /// CPUs of the outer machine; with more than one its emulation is less reliable
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Memory of the outer machine, in MiB
    #[arg(long, default_value_t = 4096)]
    memory: u32,
    /// Stop the outer machine after this many seconds
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo { kernel } => {
            let payload = Payload::assemble(Profile::TestRelease, &kernel)?;
            let limit = Duration::from_secs(900);
            let size = Size { memory_mib: 4096, ..Size::TESTS };
            let status = payload.run("guest-demo", &[], size, limit)?;
            if status == 0 {
                println!("\nA Debian guest to work in, where KVM works (docs/running.md):");
                println!("{DEBIAN_GUEST}");
            }
            return Ok(ExitCode::from(status));
        }
        Task::Test(options) => {
            return Ok(if test::run(&options)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Lint => {
            return Ok(if test::lint() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Bench(options) => return Ok(ExitCode::from(bench::run(&options)?)),
        Task::Kernel(options) => println!("{}", kernel::kernel(&options)?.vmlinux().display()),
        Task::Dist(options) => println!("{}", dist::dist(&options)?.display()),
        Task::KernelSeries(options) => kernel::send::write(&options)?,
        Task::KernelMatrix(options) => kernel::matrix::check(&options)?,
        Task::KernelUnitTests(options) => kernel::unit_tests::run(&options)?,
        Task::Testbed => {
            println!("{}", testbed::prepare()?.image.display());
        }
        Task::Rootfs(RootfsOptions { kind: Some(RootfsKind::Debian { image, kernel }) }) => {
            println!("{}", image::install(&image, &kernel.kernel()?.vmlinux())?.display());
        }
        Task::Tap(options) => tap::run(&options)?,
        Task::Rootfs(RootfsOptions { kind: None }) => {
            let stock = testbed::prepare()?;
            let disks = rootfs::guest_disks(&build::agent()?, &stock, &testbed::modetest()?)?;
            for disk in [disks.stock, disks.stock_devices, disks.stock_display, disks.ours] {
                println!("{}", disk.display());
            }
        }
        Task::GuestTests(options) => {
            let mut arguments = options.filters;
            arguments.extend(options.stress.map(|seconds| format!("--stress={seconds}").into()));
            let cpus = options.stress_cpus;
            arguments.extend(cpus.map(|cpus| format!("--stress-cpus={cpus}").into()));
            let limit = Duration::from_secs(3600);
            let tests = GuestTests::prepare(&options.kernel)?;
            let passed = tests.run(options.machines, &arguments, limit)?.failed == 0;
            return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Clients(options) => {
            let passed = clients::run(&options)?.failed == 0;
            return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Outer(OuterOptions { cpus, memory, limit, command }) => {
            let size = Size { cpus, memory_mib: memory, ..Size::TESTS };
            let status = outer::run_command(&command, size, Duration::from_secs(limit))?;
            return Ok(ExitCode::from(status));
        }
    }
    Ok(ExitCode::SUCCESS)
}
