// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: everything, in one command. A step that fails does not keep the others
//! from running; the last line says how many tests passed and failed, all steps together.
//!
//! - `licences.rs`     licences and duplicate versions of dependencies
//! - `dependencies.rs` dependencies that are not used
//! - `headers.rs`      the SPDX line of each source file
//! - `folders.rs`      the list of files in each folder's head comment
//! - `names.rs`        types that share a name
//! - `lengths.rs`      files that are too long
//! - `circles.rs`      files that use each other in a circle
//! - `imports/`        which file uses which
//! - `patches.rs`      numbers of kernel patches in documents
//! - `phrases.rs`      phrases that plain English does not use, listed in `phrases.txt`
//! - `sources.rs`      the files that these checks read
//! - `fuzz.rs`         each fuzz target for a short while
//! - `checkpatch.rs`   the kernel's own style check on our patches
//! - `room.rs`         whether the disk has room for all that
//! - `tally.rs`        what the steps have come to, all together

mod checkpatch;
mod circles;
mod dependencies;
mod folders;
mod fuzz;
mod headers;
mod imports;
mod lengths;
mod licences;
mod names;
mod patches;
mod phrases;
mod room;
mod sources;
mod tally;

use std::ffi::OsString;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::process::setpriority_process;
use tally::Tally;

use crate::build;
use crate::count::Count;
use crate::error::{Result, task_error};
use crate::guest_tests::GuestTests;
use crate::payload::KernelChoice;
use crate::{clients, kernel, outer, paths, run};

/// What the guest tests that have begun by then may take after the time for them is up. Each has a
/// limit of its own.
const GUEST_GRACE: Duration = Duration::from_secs(15 * 60);
/// Nice value of what runs beside guests: a quarter of a CPU that both want.
const LOWER_PRIORITY: i32 = 5;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    kernel: KernelChoice,
    /// Skip tests that need a guest, and with them the kernel and the outer machine
    #[arg(long)]
    no_guests: bool,
    /// Duration of each fuzz target, in seconds
    #[arg(long, default_value_t = 10)]
    fuzz_seconds: u32,
    /// Minutes after which no more guest test is begun: those that are left out are named
    #[arg(long, value_name = "MINUTES", default_value_t = 60)]
    guests_until: u32,
}

impl Options {
    /// What tells guest tests until when they may begin, and how long they may take altogether.
    fn time_for_guests(&self, tally: &Tally) -> (Vec<OsString>, Duration) {
        let minutes = Duration::from_secs(60 * u64::from(self.guests_until));
        let left = minutes.saturating_sub(tally.elapsed());
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let until = format!("--begin-until={}", (now + left).as_secs());
        (vec![until.into()], left + GUEST_GRACE)
    }
}

/// A check of sources, with its name.
type Check = (&'static str, fn() -> Result<()>);

/// Checks of sources that need no build: seconds, all together.
const SOURCE_CHECKS: [Check; 10] = [
    ("formatting", || run::show(build::cargo().args(["fmt", "--all", "--check"]))),
    ("licence headers", headers::check),
    ("lists of files", folders::check),
    ("lengths of files", lengths::check),
    ("circles between files", circles::check),
    ("names of types", names::check),
    ("patch numbers in documents", patches::check),
    ("plain English", phrases::check),
    ("licences of dependencies", licences::check),
    ("unused dependencies", dependencies::check),
];

/// Runs the checks of sources only; whether all passed.
pub(crate) fn lint() -> bool {
    let mut passed = true;
    for (name, check) in SOURCE_CHECKS {
        if let Err(error) = check() {
            eprintln!("{name}: {error}");
            passed = false;
        }
    }
    passed
}

/// Runs all steps; whether everything passed.
///
/// What needs no guest runs beside tests with guests in emulated outer machines, which take longer and
/// are preferred where both want a CPU. Where guests run on this machine they measure its free memory,
/// and run alone.
pub(crate) fn run(options: &Options) -> Result<bool> {
    room::warn();
    let tally = Tally::new();
    let guests = (!options.no_guests).then(outer::Place::choose);
    thread::scope(|scope| {
        if guests == Some(outer::Place::Outer) {
            scope.spawn(|| guest_steps(&tally, options, outer::Place::Outer));
            // May be forbidden here; then both have the same priority.
            let _ = setpriority_process(None, LOWER_PRIORITY);
        }
        native_steps(&tally, options.fuzz_seconds);
        if guests.is_some() {
            patch_steps(&tally);
        }
    });
    if guests == Some(outer::Place::Here) {
        guest_steps(&tally, options, outer::Place::Here);
    }
    Ok(tally.close())
}

/// What real guests show.
///
/// An outer machine has one CPU, so two run side by side if this machine has the CPUs and the memory.
/// The clients are few, and first; on a slow machine there may be no time for the last tests.
fn guest_steps(tally: &Tally, options: &Options, place: outer::Place) {
    let clients = || tally.step("clients of Firecracker, with guests", clients::with_guests);
    let tests = match GuestTests::prepare(&options.kernel) {
        Ok(tests) => tests,
        Err(error) => {
            clients();
            return tally.check("guest tests", || Err(error));
        }
    };
    if place == outer::Place::Outer && room::for_two_machines() {
        let share = |name: &str| {
            tally.step(&format!("guest tests, outer machine {name}"), || {
                let (arguments, limit) = options.time_for_guests(tally);
                tests.share(name, &arguments, limit)
            });
        };
        thread::scope(|scope| {
            scope.spawn(|| share("1"));
            clients();
            share("2");
        });
    } else {
        clients();
        tally.step("guest tests", || {
            let (arguments, limit) = options.time_for_guests(tally);
            tests.run(1, &arguments, limit)
        });
    }
}

/// What needs no guest.
fn native_steps(tally: &Tally, fuzz_seconds: u32) {
    for (name, check) in SOURCE_CHECKS {
        tally.check(name, check);
    }
    tally.check("clippy", || {
        run::show(
            build::cargo()
                .args(["clippy", "--locked", "--quiet", "--workspace", "--all-targets"])
                .args(["--", "-D", "warnings"]),
        )
    });
    tally.check("documentation", || {
        run::show(
            build::cargo()
                .args(["doc", "--locked", "--quiet", "--workspace", "--no-deps"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        )
    });
    tally.step("unit and documentation tests", || {
        cargo_tests(cargo_test().args(["--workspace", "--no-fail-fast"]))
    });
    tally.step("clients of Firecracker", clients::native);
    tally.step("models of what is lock-free", models);
    tally.step("fuzzing, shortly", || fuzz::smoke(fuzz_seconds));
}

/// What is known of the kernel's patches without running them.
fn patch_steps(tally: &Tally) {
    tally.check("guest kernel patches: style", checkpatch::check);
    tally.check("guest kernel patches: configurations", || {
        kernel::matrix::check(&kernel::Options::default())
    });
}

/// loom runs every interleaving of the bit-locked parts of `mm`. The flag makes it another build,
/// with a folder of its own: otherwise each run would rebuild the other's dependencies.
fn models() -> Result<Count> {
    cargo_tests(
        cargo_test()
            .args(["--package", "ballast-mm", "--release", "--lib", "loom"])
            .env("CARGO_TARGET_DIR", paths::target().join("loom"))
            .env("RUSTFLAGS", "--cfg loom"),
    )
}

fn cargo_test() -> Command {
    let mut cargo = build::cargo();
    cargo.args(["test", "--locked", "--quiet"]);
    cargo
}

/// Runs `cargo test`, its results counted from its closing lines.
fn cargo_tests(test: &mut Command) -> Result<Count> {
    let mut count = Count::default();
    let outcome = run::watch(test, |line| {
        if let Some(result) = closing_line(line) {
            count.add(result);
        }
    });
    if outcome.is_err() && count.failed == 0 {
        // The build failed: no test ran.
        outcome?;
    }
    if count.passed + count.failed == 0 {
        return task_error("no test ran");
    }
    Ok(count)
}

/// `test result: ok. 5 passed; 0 failed; ...`
fn closing_line(line: &str) -> Option<Count> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut parts = rest.split("; ");
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some(Count { passed, failed, ..Count::default() })
}

#[cfg(test)]
mod tests {
    use super::closing_line;

    #[test]
    fn closing_lines_are_counted() {
        let line =
            "test result: FAILED. 41 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out";
        let count = closing_line(line).unwrap();
        assert_eq!((count.passed, count.failed), (41, 2));
        assert!(closing_line("test it ... ok").is_none());
    }
}
