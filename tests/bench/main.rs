// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Benches with real guests that compare Ballast with its peers: `cargo xtask bench` runs this
//! where KVM works. Each closes with lines of figures (`harness::figures`).
//!
//! - `boot.rs`     start-up time, the monitor's own memory, the balloon's rates
//! - `balloon.rs`  memory that returns to the host, also from a fragmented guest
//! - `compact.rs`  the effect of a compaction pass on a fragmented guest
//! - `density.rs`  guests that fit on one host
//! - `density_load.rs` requests to them
//! - `density_plot.rs` a picture of that
//! - `density_rows.rs` the rows of all monitors, and figures made of them
//! - `io_limits.rs` the limits of the same load without a guest
//! - `park.rs`     the cost of a parked guest, and its return
//! - `park_guests.rs` the guests of that
//! - `park_memory.rs` where a parked guest's memory is
//! - `gpu.rs`      GPU buffers: fragmentation, and pages that move
//! - `io.rs`       disks, network, vsock and the start of Debian, beside fio and iperf3 without a guest
//! - `io_cost.rs`  what that load costs the host
//! - `io_samples.rs` the values of all monitors, and figures made of them
//! - `guest.rs`    allocations that still succeed next to balloon and buffers

mod balloon;
mod boot;
mod compact;
mod density;
mod density_load;
mod density_plot;
mod density_rows;
mod gpu;
mod guest;
mod io;
mod io_cost;
mod io_limits;
mod io_samples;
mod park;
mod park_guests;
mod park_memory;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use harness::figures::Figure;
use harness::monitor::{Kind, Program};
use harness::payload::{Folders, Payload};
use harness::{Error, Result};

#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    folders: Folders,
    /// A peer: the name of its binary in the payload is the name of its kind, unless given
    #[arg(long = "peer", value_name = "KIND[=NAME]", value_parser = parse_peer)]
    peers: Vec<(Kind, String)>,
    /// Measure these monitors only
    #[arg(long, value_name = "KIND")]
    only: Vec<Kind>,
    /// Number of rounds; medians are printed
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Of `io`, measure this only
    #[arg(long = "part", value_name = "PART")]
    parts: Vec<io::Part>,
    /// Of `park`, measure this way of parking only, of `density` this row
    #[arg(long = "way", value_name = "WAY")]
    ways: Vec<String>,
    /// Of `io` and `density`: start with what an earlier run has left in this file
    #[arg(long, value_name = "FILE")]
    samples: Vec<PathBuf>,
    /// Time passes by instructions: a little of everything is enough
    #[arg(long)]
    exact_clock: bool,
    /// Only keep the values, in `samples.json`: another run makes figures of them
    #[arg(long)]
    values_only: bool,
    /// What to measure
    bench: Bench,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Bench {
    Boot,
    Balloon,
    Compact,
    Density,
    Gpu,
    Guest,
    Io,
    Park,
}

/// The unpatched kernel's name in the payload, if there is one.
const STOCK_KERNEL: &str = "vmlinux-stock";
/// Mappings at least this long are guest memory.
const GUEST_MAPPING: u64 = 64 << 20;

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn parse_peer(word: &str) -> std::result::Result<(Kind, String), String> {
    let (kind, name) = word.split_once('=').unwrap_or((word, word));
    Ok((kind.parse()?, name.to_owned()))
}

/// What a bench gets.
struct Bed {
    payload: Payload,
    logs: PathBuf,
    /// Ballast first.
    programs: Vec<Program>,
    rounds: u32,
    /// Of `io` and `park`; none for all.
    parts: Vec<io::Part>,
    /// Of `park` and `density`; none for all.
    ways: Vec<String>,
    /// Of `io` and `density`: files of earlier runs.
    samples: Vec<PathBuf>,
    /// Whether time passes by instructions.
    exact_clock: bool,
}

impl Bed {
    /// How much of everything `io` measures.
    fn amounts(&self) -> &'static io::Amounts {
        io::Amounts::of(self.exact_clock)
    }
}

/// With the emulated machine's two CPUs, guests sometimes hang or reset with any monitor
/// (docs/testing.md): number of attempts of a measurement.
const TRIES: u32 = 4;

/// Measures, with another guest if one is lost. Anything else that goes wrong ends it.
fn patiently<T>(mut measure: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match measure() {
            Err(error) if error.lost_guest() => println!("a guest was lost, retrying: {error}"),
            other => return other,
        }
    }
    measure()
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let payload = Payload::new(&options.folders.payload);
    let mut programs = vec![Program { kind: Kind::Ballast, path: payload.ballast() }];
    for (kind, name) in &options.peers {
        programs.push(Program { kind: *kind, path: payload.path(name) });
    }
    programs.retain(|program| options.only.is_empty() || options.only.contains(&program.kind));
    let logs = options.folders.logs.clone();
    let (parts, samples) = (options.parts.clone(), options.samples.clone());
    let ways = options.ways.clone();
    let (rounds, exact_clock) = (options.rounds, options.exact_clock);
    let bed = Bed { payload, logs, programs, rounds, parts, ways, samples, exact_clock };
    let figures: Vec<Figure> = match options.bench {
        Bench::Boot => boot::measure(&bed)?,
        Bench::Balloon => balloon::measure(&bed)?,
        Bench::Compact => compact::measure(&bed)?,
        Bench::Density => density::measure(&bed)?,
        Bench::Gpu => gpu::measure(&bed)?,
        Bench::Guest => guest::measure(&bed)?,
        Bench::Io => io::measure(&bed)?,
        Bench::Park => park::measure(&bed)?,
    };
    if options.values_only {
        return Ok(());
    }
    for figure in &figures {
        println!("{figure}");
    }
    let json: Vec<serde_json::Value> = figures.iter().map(Figure::json).collect();
    let json = format!("{:#}\n", serde_json::Value::from(json));
    std::fs::write(options.folders.logs.join("figures.json"), json)
        .map_err(Error::io("figures.json"))
}
