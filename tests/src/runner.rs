// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs tests one after the other: they measure the host's memory and would disturb each other.
//! Each runs in a separate process (this program again, `--only NAME`), so that a hung or crashed
//! test can be killed with its children.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::claims::Claims;
use crate::limits::{self, patient};
use crate::payload::{Folders, Payload};
use crate::progress::{Known, Progress};
use crate::{Error, Result};

/// Lines of a failed test's output that are shown.
const SHOWN: usize = 60;

/// Default duration of stress tests: most failures occur immediately.
const STRESS_SECONDS: u64 = 30;

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// `subject::what_is_shown`.
    pub name: &'static str,
    /// It is ended and has failed once this has passed.
    pub limit: Duration,
    /// Runs only where a filter names it: it takes long.
    pub on_request: bool,
    /// The test.
    pub run: fn(&Context) -> Result<()>,
}

impl Test {
    /// What a folder of its own is called.
    fn folder(&self) -> String {
        self.name.replace("::", "-")
    }
}

/// What a test gets.
#[derive(Debug)]
pub struct Context {
    /// What guests are started from.
    pub payload: Payload,
    /// A folder for its logs, kept if it fails.
    pub logs: PathBuf,
    /// Duration of a stress test.
    pub stress: Duration,
    /// vCPUs of a stress test's guest, where that matters.
    pub stress_cpus: u32,
}

impl Context {
    /// Ballast, to be started.
    #[must_use]
    pub fn ballast(&self) -> crate::monitor::Program {
        crate::monitor::Program {
            kind: crate::monitor::Kind::Ballast,
            path: self.payload.ballast(),
        }
    }
}

/// Makes a [`Test`] named after module and function.
#[macro_export]
macro_rules! test {
    ($module:ident :: $function:ident, $seconds:expr) => {
        $crate::runner::Test {
            name: concat!(stringify!($module), "::", stringify!($function)),
            limit: std::time::Duration::from_secs($seconds),
            on_request: false,
            run: $module::$function,
        }
    };
    (on request $module:ident :: $function:ident, $seconds:expr) => {
        $crate::runner::Test { on_request: true, ..$crate::test!($module::$function, $seconds) }
    };
}

#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    folders: Folders,
    /// Duration of stress tests, in seconds; all time limits are longer by as much
    #[arg(long, value_name = "SECONDS", default_value_t = STRESS_SECONDS)]
    stress: u64,
    /// vCPUs of stress tests' guests [default: the host's CPUs, at most 2]: more than the host has
    /// let a vCPU be interrupted at any point of its work, but mostly wait for each other
    #[arg(long, value_name = "N")]
    stress_cpus: Option<u32>,
    /// A factor for all time limits, for slow kernels and machines
    #[arg(long, value_name = "FACTOR", default_value_t = 1)]
    patience: u32,
    /// Guests run the debug kernel, which uses more memory
    #[arg(long)]
    debug_kernel: bool,
    /// Begin no test after this time, in seconds since 1970: those that are left out are named
    #[arg(long, value_name = "SECONDS")]
    begin_until: Option<u64>,
    /// Take only tests that have no entry in this folder, and make one for each: several machines can
    /// share it and the tests
    #[arg(long, value_name = "DIR")]
    claims: Option<PathBuf>,
    /// Run this test in this process
    #[arg(long, hide = true)]
    only: Option<String>,
    /// Run only tests whose names contain one of these
    filters: Vec<String>,
}

impl Options {
    /// Whether no more test may begin.
    fn out_of_time(&self) -> bool {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        self.begin_until.is_some_and(|end| now.as_secs() > end)
    }
}

/// The test program's `main`.
pub fn main(tests: &[Test]) -> ExitCode {
    let options = Options::parse();
    limits::set_patience(options.patience);
    limits::set_debug_kernel(options.debug_kernel);
    let outcome = match &options.only {
        Some(name) => run_one(tests, name, &options),
        None => run_all(tests, &options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run_one(tests: &[Test], name: &str, options: &Options) -> Result<bool> {
    let test = tests
        .iter()
        .find(|test| test.name == name)
        .ok_or_else(|| Error::Check(format!("no test {name}")))?;
    let payload = Payload::new(&options.folders.payload);
    let stress = Duration::from_secs(options.stress);
    let stress_cpus = options.stress_cpus.unwrap_or_else(|| {
        if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) { 2 } else { 1 }
    });
    let logs = options.folders.logs.clone();
    (test.run)(&Context { payload, logs, stress, stress_cpus })?;
    Ok(true)
}

fn run_all(tests: &[Test], options: &Options) -> Result<bool> {
    let wanted = |test: &&Test| match options.filters.as_slice() {
        [] => !test.on_request,
        words => words.iter().any(|word| test.name.contains(word)),
    };
    let chosen: Vec<&Test> = tests.iter().filter(wanted).collect();
    let scratch = tempfile::tempdir().map_err(Error::io("creating a folder"))?;
    fs::create_dir_all(&options.folders.logs).map_err(Error::io("creating a folder"))?;
    let mut progress = Progress::open(&options.folders.logs)?;
    let claims = Claims::new(options.claims.clone());
    let (mut passed, mut failed) = (0, 0);
    let mut left_out = Vec::new();
    for (number, test) in (1..).zip(&chosen) {
        match progress.of(test.name) {
            Known::Begun => {}
            Known::Nothing if claims.take(&test.folder())? => {}
            Known::Nothing => continue,
            Known::Passed => {
                passed += 1;
                continue;
            }
            Known::Failed => {
                failed += 1;
                continue;
            }
            Known::Crashed => {
                println!(
                    "[{number}/{}] {} ... FAILED: the machine crashed",
                    chosen.len(),
                    test.name
                );
                progress.end(test.name, false)?;
                failed += 1;
                continue;
            }
        }
        if options.out_of_time() {
            left_out.push(test.name);
            continue;
        }
        progress.begin(test.name)?;
        let logs = scratch.path().join(test.folder());
        fs::create_dir_all(&logs).map_err(Error::io("creating a folder"))?;
        let started = Instant::now();
        let mut verdict = supervise(test, options, &logs)?;
        for _ in 1..tries() {
            if verdict == Verdict::Passed {
                break;
            }
            println!("    {}: {}; retrying", test.name, verdict.word());
            print_tail(&logs.join("output"));
            copy_folder(&logs, &options.folders.logs.join(test.folder()))?;
            verdict = supervise(test, options, &logs)?;
        }
        let seconds = started.elapsed().as_secs_f32();
        println!(
            "[{number}/{}] {} ... {} ({seconds:.1} s)",
            chosen.len(),
            test.name,
            verdict.word()
        );
        progress.end(test.name, verdict == Verdict::Passed)?;
        if verdict == Verdict::Passed {
            passed += 1;
            continue;
        }
        failed += 1;
        print_tail(&logs.join("output"));
        let kept = options.folders.logs.join(test.folder());
        copy_folder(&logs, &kept)?;
        let shown =
            kept.strip_prefix("/host").map_or(kept.clone(), |path| Path::new("/").join(path));
        println!("    logs kept in {}", shown.display());
    }
    let not_run = left_out.len();
    print!("guest tests: {passed} passed, {failed} failed");
    if left_out.is_empty() {
        println!();
    } else {
        println!(", {not_run} not run, since time is up: {}", left_out.join(", "));
    }
    let summary = options.folders.logs.join("summary");
    fs::write(&summary, format!("{passed} {failed} {not_run}\n"))
        .map_err(Error::io("writing a summary"))?;
    Ok(failed == 0)
}

/// How often a test is tried. In the emulated machine a guest now and then meets an interrupt where
/// there can be none, or loses one; each failure is still shown and its logs are kept.
fn tries() -> u32 {
    if std::env::var_os("BALLAST_OUTER").is_some() { 3 } else { 1 }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    TimedOut,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::TimedOut => "FAILED: out of time",
        }
    }
}

/// Runs a test in a process group of its own, and kills the group afterwards.
fn supervise(test: &Test, options: &Options, logs: &Path) -> Result<Verdict> {
    let doing = || Error::io(format!("running {}", test.name));
    let output = File::create(logs.join("output")).map_err(doing())?;
    let mut child = Command::new(std::env::current_exe().map_err(doing())?)
        .arg("--payload")
        .arg(&options.folders.payload)
        .arg("--logs")
        .arg(logs)
        .args(["--stress", &options.stress.to_string()])
        .args(options.stress_cpus.map(|cpus| format!("--stress-cpus={cpus}")))
        .args(["--patience", &options.patience.to_string()])
        .args(["--only", test.name])
        .args(options.debug_kernel.then_some("--debug-kernel"))
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(doing())?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .map_err(doing())?;
    let deadline = Instant::now() + patient(test.limit) + Duration::from_secs(options.stress);
    let status: Option<ExitStatus> = loop {
        match child.try_wait().map_err(doing())? {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Already ended on success.
        let _ = kill_process_group(group, Signal::KILL);
    }
    if status.is_none() {
        child.wait().map_err(doing())?;
    }
    Ok(match status {
        Some(status) if status.success() => Verdict::Passed,
        Some(_) => Verdict::Failed,
        None => Verdict::TimedOut,
    })
}

fn print_tail(output: &Path) {
    let text = fs::read(output).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(SHOWN)..] {
        println!("    {line}");
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let doing = || Error::io(format!("keeping logs in {}", to.display()));
    fs::create_dir_all(to).map_err(doing())?;
    for entry in fs::read_dir(from).map_err(doing())? {
        let entry = entry.map_err(doing())?;
        // Sockets and FIFOs have no contents.
        if entry.file_type().map_err(doing())?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).map_err(doing())?;
        }
    }
    Ok(())
}
