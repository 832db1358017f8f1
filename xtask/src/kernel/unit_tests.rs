// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask kernel-unit-tests`: the KUnit tests of the series, which a kernel with
//! `guest-kernel/configs/kunit.config` runs when it boots. They need no device, so the kernel boots in
//! QEMU without one, and without a root file system: it panics after the tests, and QEMU exits.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Kernel, Options};
use crate::error::{IoContext, Result, task_error};
use crate::{apt, run};

/// Seconds that the boot may take.
const LIMIT: &str = "300";
/// What the log of a kernel whose tests passed is kept as, in its folder of the cache.
const PASSED: &str = "kunit.log";

/// Runs the tests, unless this kernel has passed them.
pub(crate) fn run(options: &Options) -> Result<()> {
    let kernel = super::kernel(&Options { kunit: true, ..options.clone() })?;
    let log = kernel.dir.join(PASSED);
    if !log.is_file() {
        let text = boot(&kernel)?;
        results(&text)?;
        fs::write(&log, &text).doing("writing", &log)?;
    }
    println!("{}", summary(&log)?);
    Ok(())
}

/// The console of a boot.
fn boot(kernel: &Kernel) -> Result<String> {
    apt::ensure("the kernel's unit tests", &["qemu-system-x86"])?;
    run::capture(
        Command::new("timeout")
            .args(["--foreground", LIMIT, "qemu-system-x86_64"])
            .args(["-machine", "q35,accel=tcg", "-m", "512", "-nographic", "-no-reboot"])
            .args(["-nodefaults", "-serial", "stdio", "-append", "console=ttyS0 panic=-1"])
            .arg("-kernel")
            .arg(kernel.bz_image()),
    )
}

/// Lines of results in KTAP, without the kernel's time stamps: `ok 1 name` or `not ok 1 name`.
fn result_lines(console: &str) -> impl Iterator<Item = &str> {
    let unstamped = |line: &'_ str| match line.split_once("] ") {
        Some((stamp, _)) if stamp.starts_with('[') => stamp.len() + 2,
        _ => 0,
    };
    console
        .lines()
        .map(move |line| line[unstamped(line)..].trim())
        .filter(|line| line.starts_with("ok ") || line.starts_with("not ok "))
}

/// Fails with the tests that failed, or if no test ran.
fn results(console: &str) -> Result<usize> {
    let failed: Vec<&str> = result_lines(console).filter(|line| line.starts_with('n')).collect();
    let passed = result_lines(console).count();
    match (failed.is_empty(), passed) {
        (true, 1..) => Ok(passed),
        (true, 0) => task_error(format!("the kernel ran no unit tests:\n{console}")),
        (false, _) => task_error(format!("unit tests of the kernel failed:\n{console}")),
    }
}

fn summary(log: &Path) -> Result<String> {
    let text = fs::read_to_string(log).doing("reading", log)?;
    Ok(result_lines(&text).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    0.51] KTAP version 1\r\n[    0.52]     ok 1 merges\r\n\
                           [    0.53]     ok 2 limits\n[    0.54] ok 1 virtio_gpu\nKernel panic";

    #[test]
    fn results_are_counted() {
        assert_eq!(results(CONSOLE).unwrap(), 3);
        assert_eq!(result_lines(CONSOLE).last(), Some("ok 1 virtio_gpu"));
    }

    #[test]
    fn failed_tests_and_no_tests_are_errors() {
        assert!(results(&CONSOLE.replace("ok 2", "not ok 2")).is_err());
        assert!(results("[    0.51] Kernel panic").is_err());
    }
}
