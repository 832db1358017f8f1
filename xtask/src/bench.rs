// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench`: compares Ballast with its peers, with all files in memory.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::build::{self, Profile};
use crate::error::{Error, IoContext, Result, task_error};
use crate::kernel::Kernel;
use crate::outer::{Clock, Place, Size};
use crate::payload::{KernelChoice, Payload};
use crate::{bench_pieces, debian, hold, paths, run};

/// Debian's QEMU, the peer that is always there.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// A CPU for the guest and one for its monitor.
const OUTER: Size = Size { cpus: 2, memory_mib: 8192, xsave: true, clock: Clock::Host };
/// For what takes a while, one that loses no guests and has no stalls between its CPUs: what is
/// measured is memory, or the work that guest and monitor do together.
const OUTER_OF_ONE: Size = Size { cpus: 1, ..OUTER };
/// A host that a few guests fill, whose response times do not depend on the load of this machine.
const SMALL_OUTER: Size = Size { memory_mib: 2048, clock: Clock::Instructions, ..OUTER_OF_ONE };
/// What `bench io` measures the limits with.
const IO_TOOLS: [(&str, &str); 3] = [("fio", "fio"), ("iperf3", "iperf3"), ("ip", "iproute2")];
const LIMIT: Duration = Duration::from_secs(3 * 3600);
/// For a part of `io` in a machine of its own.
const PART_LIMIT: Duration = Duration::from_secs(1800);

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Start-up time, the monitor's own memory, balloon rates with single pages
    Boot,
    /// Memory that returns to the host: by blocks, by pages, from a fragmented guest, by reporting
    Balloon,
    /// Block map and host-side compaction: natively, and of a fragmented guest
    Compact,
    /// The virtual GPU: flushes and page migrations, natively and in guests; fragmentation by
    /// buffers, with our kernel and with Debian's
    Gpu,
    /// Allocations that still succeed in the guest next to a balloon and GPU buffers, with our
    /// kernel and with Debian's
    Guest,
    /// Disks, network, vsock and the boot of Debian, compared with fio and iperf3 without a guest
    Io,
    /// Parked memory: its cost, and the speed of parking and unparking, natively and in a guest
    Park,
    /// Guests of 256 MiB with a web service that fit on one host, beside Firecracker's
    Density,
    /// The frame pool, zsmalloc and the compressed store, natively
    Mm,
    /// Longest lock holds by a guest and clients, time from SIGTERM to exit, start-up time and the
    /// monitor's own memory, natively
    Hold,
}

impl Bench {
    /// The word that the bench program takes, of those that need guests.
    fn guest_bench(self) -> Option<&'static str> {
        match self {
            Self::Boot => Some("boot"),
            Self::Balloon => Some("balloon"),
            Self::Compact => Some("compact"),
            Self::Gpu => Some("gpu"),
            Self::Guest => Some("guest"),
            Self::Io => Some("io"),
            Self::Park => Some("park"),
            Self::Density => Some("density"),
            Self::Mm | Self::Hold => None,
        }
    }

    /// The emulated machine for it.
    fn outer(self) -> Size {
        match self {
            Self::Compact | Self::Guest | Self::Io | Self::Park => OUTER_OF_ONE,
            Self::Density => SMALL_OUTER,
            Self::Boot | Self::Balloon | Self::Gpu | Self::Mm | Self::Hold => OUTER,
        }
    }

    /// What cargo runs, of those that have a part without guests.
    fn cargo_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Boot | Self::Balloon | Self::Density | Self::Guest | Self::Io => &[],
            Self::Compact => &["-p", "ballast-mm", "--bench", "blocks"],
            Self::Gpu => &["-p", "ballast-devices", "--features", "test-utils", "--bench", "gpu"],
            Self::Hold => &[
                "--profile",
                "test-release",
                "-p",
                "ballast-devices",
                "--features",
                "test-utils",
                "--bench",
                "hold",
            ],
            Self::Park => &["-p", "ballast-mm", "--bench", "paging"],
            Self::Mm => &["-p", "ballast-mm", "--bench", "figures"],
        }
    }
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// What to measure
    bench: Bench,
    /// A peer's binary; KIND is firecracker, cloud-hypervisor or qemu (Debian's QEMU is the
    /// default)
    #[arg(long = "peer", value_name = "KIND=PATH", value_parser = parse_peer)]
    peers: Vec<(String, PathBuf)>,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Number of rounds; 7 unless given, and of `io` in the outer machine 1
    #[arg(long)]
    rounds: Option<u32>,
    /// Build as for tests, which is faster: for trying out a bench, not for published figures
    #[arg(long)]
    quick: bool,
    /// Let time in the outer machine pass by instructions, as `io` and `density` do: figures compare
    /// exactly, however busy this machine is. Not for benches whose outer machine has two CPUs
    #[arg(long)]
    count_instructions: bool,
    /// Measure these monitors only
    #[arg(long, value_name = "KIND")]
    only: Vec<String>,
    /// Measure this part only: of `io` limits, disks, tcp, vsock or debian; of `park` debian or filled
    #[arg(long = "part", value_name = "PART")]
    parts: Vec<String>,
    /// Of `park`, measure this way only: lz4, zstd, lz4-trimmed, zstd-trimmed or lz4-zstd-trimmed;
    /// of `density` this row: firecracker, firecracker-reporting, firecracker-zram or ballast-dense
    #[arg(long = "way", value_name = "WAY")]
    ways: Vec<String>,
    /// Of `io` and `density` in the outer machine: include what an earlier run has left in this file,
    /// the samples.json of a part or row
    #[arg(long, value_name = "FILE")]
    samples: Vec<PathBuf>,
    #[command(flatten)]
    kernel: KernelChoice,
    /// Also measure `balloon` and `guest` with the vmlinux in this directory: an unpatched kernel, built
    /// by `cargo xtask kernel --stock`
    #[arg(long, value_name = "DIR", env = "BALLAST_STOCK_KERNEL_DIR")]
    stock_kernel: Option<PathBuf>,
}

impl Options {
    /// Rounds of anything whose clock is this machine's.
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(7)
    }

    fn profile(&self) -> Profile {
        if self.quick { Profile::TestRelease } else { Profile::Release }
    }

    /// The emulated machine.
    fn outer(&self) -> Result<Size> {
        let size = self.bench.outer();
        match (self.count_instructions, size.cpus) {
            (false, _) => Ok(size),
            (true, 1) => Ok(Size { clock: Clock::Instructions, ..size }),
            (true, cpus) => task_error(format!(
                "--count-instructions: this bench's outer machine has {cpus} CPUs"
            )),
        }
    }
}

fn parse_peer(word: &str) -> std::result::Result<(String, PathBuf), String> {
    let (kind, path) = word.split_once('=').ok_or("give a peer as KIND=PATH")?;
    if !["firecracker", "cloud-hypervisor", "qemu"].contains(&kind) {
        return Err(format!("{kind}: not one of firecracker, cloud-hypervisor, qemu"));
    }
    Ok((kind.to_owned(), PathBuf::from(path)))
}

/// Runs the bench; returns its exit status.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let mut figures = natively(options)?;
    let status = match options.bench.guest_bench() {
        Some(name) => with_guests(name, options, &mut figures)?,
        None => 0,
    };
    if let (0, Some(json)) = (status, &options.json) {
        fs::write(json, format!("{:#}\n", Value::from(figures))).doing("writing", json)?;
    }
    Ok(status)
}

/// Runs a bench of one of the crates, if this is one; gives its figures.
fn natively(options: &Options) -> Result<Vec<Value>> {
    let mut figures = Vec::new();
    let arguments = options.bench.cargo_arguments();
    // With monitors given, only those are measured.
    let wanted = options.only.is_empty() || options.bench.guest_bench().is_none();
    if wanted && !arguments.is_empty() {
        run::watch(
            build::cargo().args(["bench", "--locked", "--quiet"]).args(arguments),
            |line| figures.extend(figure(line)),
        )?;
    }
    if options.bench == Bench::Hold {
        let lines = hold::measure(options.profile(), options.rounds())?;
        figures.extend(lines.iter().filter_map(|line| figure(line)));
    }
    if wanted && options.bench == Bench::Boot {
        figures.extend(figure(&missing_kernel(options)?));
    }
    Ok(figures)
}

/// Time until `ballast run` reports that there is no kernel: it depends on this machine only, as it never
/// comes to need KVM.
fn missing_kernel(options: &Options) -> Result<String> {
    let ballast = build::programs(options.profile())?.ballast;
    let mut times = Vec::new();
    for _ in 0..options.rounds().max(1) {
        let started = Instant::now();
        let output = Command::new(&ballast)
            .args(["run", "--kernel", "/nowhere/vmlinux"])
            .output()
            .map_err(|source| Error::Spawn { program: "ballast".into(), source })?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
        if output.status.code() != Some(1) {
            return task_error(format!("a missing kernel ended Ballast with {}", output.status));
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let verdict = if median <= 50.0 { "met" } else { "short" };
    let line = format!("figure boot.ballast.missing-kernel {median:.3} ms goal <=50.000 {verdict}");
    println!("{line}");
    Ok(line)
}

/// `figure <name> <value> <unit> goal <goal> met|short` as JSON.
fn figure(line: &str) -> Option<Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["figure", name, value, unit, "goal", goal, verdict] => Some(json!({
            "name": name,
            "value": value.parse::<f64>().ok()?,
            "unit": unit,
            "goal": goal,
            "met": *verdict == "met",
        })),
        _ => None,
    }
}

/// Runs a bench with guests, and adds its figures; gives its exit status.
fn with_guests(bench: &str, options: &Options, figures: &mut Vec<Value>) -> Result<u8> {
    let outer = options.outer()?;
    let mut payload = Payload::assemble(options.profile(), &options.kernel)?;
    if let (Bench::Balloon | Bench::Guest, Some(dir)) = (options.bench, &options.stock_kernel) {
        payload.add_file("vmlinux-stock", Kernel { dir: dir.clone() }.vmlinux());
    }
    if matches!(options.bench, Bench::Io | Bench::Park) {
        payload.add_image()?;
    }
    if options.bench == Bench::Io {
        for (name, package) in IO_TOOLS {
            payload.add_program(name, &debian::program(name, package)?)?;
        }
    }
    let mut arguments: Vec<OsString> = vec![bench.into()];
    let mut add = |kind: &str, path: &Path| -> Result<()> {
        if !path.is_file() {
            return task_error(format!("{}: no such binary", path.display()));
        }
        if kind == "qemu" {
            payload.add_qemu(path)?;
            arguments.push("--peer=qemu=qemu-system-x86_64".into());
        } else {
            payload.add_program(kind, path)?;
            arguments.push(format!("--peer={kind}").into());
        }
        Ok(())
    };
    for (kind, path) in &options.peers {
        add(kind, path)?;
    }
    // It has no GPU whose pages could move, and no vsock by a Unix socket.
    let without_qemu = matches!(options.bench, Bench::Gpu | Bench::Density);
    if !without_qemu && !options.peers.iter().any(|(kind, _)| kind == "qemu") {
        add("qemu", Path::new(QEMU))?;
    }
    let apart = matches!(options.bench, Bench::Io | Bench::Density);
    let status = if apart && Place::choose() == Place::Outer {
        let wanted = bench_pieces::Wanted {
            only: &options.only,
            parts: &options.parts,
            ways: &options.ways,
            rounds: options.rounds.unwrap_or(1),
        };
        let (pieces, limit) = match options.bench {
            Bench::Density => (wanted.of_density(&arguments), LIMIT),
            _ => (wanted.of_io(&arguments), PART_LIMIT),
        };
        bench_pieces::one_by_one(&payload, &arguments, &pieces, &options.samples, outer, limit)?
    } else {
        arguments.push(format!("--rounds={}", options.rounds()).into());
        arguments.extend(options.only.iter().map(|kind| format!("--only={kind}").into()));
        arguments.extend(options.parts.iter().map(|part| format!("--part={part}").into()));
        arguments.extend(options.ways.iter().map(|way| format!("--way={way}").into()));
        payload.run("guest-bench", &arguments, outer, LIMIT)?
    };
    if status == 0 {
        let path = paths::target().join("guest/guest-bench/figures.json");
        let text = fs::read_to_string(&path).doing("reading", &path)?;
        let added: Vec<Value> = serde_json::from_str(&text)
            .map_err(|e| Error::Task(format!("{}: not figures: {e}", path.display())))?;
        figures.extend(added);
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::figure;

    #[test]
    fn figure_lines_become_json() {
        let json = figure("figure mm.move 3.25 GiB/s goal >=2.900 met").unwrap();
        assert_eq!(json["value"], 3.25);
        assert_eq!(json["met"], true);
        assert!(figure("figure mm.move fast").is_none());
    }
}
