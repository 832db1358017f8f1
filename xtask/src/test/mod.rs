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
mod sources;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::build;
use crate::error::{IoContext, Result, task_error};
use crate::payload::{self, KernelChoice};
use crate::{clients, kernel, paths, run};

/// All guest tests together; each has a limit of its own.
const GUEST_LIMIT: Duration = Duration::from_secs(3000);

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
}

/// Tests counted.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    const ONE: Self = Self { passed: 1, failed: 0 };

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl From<clients::Outcome> for Count {
    fn from(outcome: clients::Outcome) -> Self {
        Self { passed: outcome.passed, failed: outcome.failed }
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
pub(crate) fn run(options: &Options) -> Result<bool> {
    let started = Instant::now();
    let mut all = Count::default();
    let mut failed_steps = Vec::new();
    let mut step = |name: &str, run: &mut dyn FnMut() -> Result<Count>| {
        eprintln!("== {name} (after {})", run::minutes(started.elapsed()));
        let count = run().unwrap_or_else(|error| {
            eprintln!("{name}: {error}");
            Count { passed: 0, failed: 1 }
        });
        if count.failed > 0 {
            failed_steps.push(format!("{name}: {} failed", count.failed));
        }
        all.add(count);
    };
    let whole = |done: Result<()>| done.map(|()| Count::ONE);

    for (name, check) in SOURCE_CHECKS {
        step(name, &mut || whole(check()));
    }
    step("clippy", &mut || {
        whole(run::show(
            build::cargo()
                .args(["clippy", "--locked", "--quiet", "--workspace", "--all-targets"])
                .args(["--", "-D", "warnings"]),
        ))
    });
    step("documentation", &mut || {
        whole(run::show(
            build::cargo()
                .args(["doc", "--locked", "--quiet", "--workspace", "--no-deps"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        ))
    });
    step("unit and documentation tests", &mut || {
        cargo_tests(cargo_test().args(["--workspace", "--no-fail-fast"]))
    });
    step("clients of Firecracker", &mut || clients::native().map(Count::from));
    step("models of what is lock-free", &mut models);
    step("fuzzing, shortly", &mut || fuzz::smoke(options.fuzz_seconds));
    if !options.no_guests {
        step("guest kernel patches: style", &mut || whole(checkpatch::check()));
        step("guest kernel patches: configurations", &mut || {
            whole(kernel::matrix::check(&kernel::Options::default()))
        });
        step("guest tests", &mut || guest_tests(&options.kernel));
        step("clients of Firecracker, with guests", &mut || {
            clients::with_guests().map(Count::from)
        });
    }

    for failed in &failed_steps {
        eprintln!("{failed}");
    }
    eprintln!("all steps took {}", run::minutes(started.elapsed()));
    println!("{} passed, {} failed", all.passed, all.failed);
    Ok(all.failed == 0)
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
    Some(Count { passed, failed })
}

fn guest_tests(choice: &KernelChoice) -> Result<Count> {
    let status = payload::guest_tests(choice, Vec::new(), GUEST_LIMIT)?;
    let summary = paths::target().join("guest/guest-tests/summary");
    let text = fs::read_to_string(&summary).doing("reading", &summary)?;
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    let mut count =
        Count { passed: numbers.next().unwrap_or(0), failed: numbers.next().unwrap_or(0) };
    if status != 0 && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
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
