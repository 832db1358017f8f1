// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each fuzz target for a short while: that it builds, and that what it found before stays fixed.
//! Fuzzing in earnest is `cargo fuzz run TARGET` in `tests/fuzz`.

use std::process::Command;

use serde_json::Value;

use super::Count;
use crate::error::{Error, Result};
use crate::{apt, build, paths, run};

/// The instrumentation that `cargo fuzz --sanitizer none` builds with; a stable compiler has it.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cdebug-assertions -Ccodegen-units=1";
/// The same inputs in each run: what fails here fails for the next person too.
const SEED: &str = "-seed=1";
/// Naming the target keeps the instrumentation off build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs all targets.
pub(crate) fn smoke(seconds: u32) -> Result<Count> {
    let folder = paths::workspace().join("tests/fuzz");
    if !folder.join("Cargo.toml").is_file() {
        return Ok(Count::default());
    }
    // libFuzzer itself is C++.
    if !run::in_path("g++") {
        apt::ensure("fuzzing", &["g++"])?;
    }
    let metadata = run::capture(build::cargo().current_dir(&folder).args([
        "metadata",
        "--locked",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata)
        .map_err(|e| Error::Task(format!("cargo metadata gave no JSON: {e}")))?;
    let out = paths::target().join("fuzz");
    run::show(
        build::cargo()
            .current_dir(&folder)
            .args(["build", "--locked", "--release", "--quiet", "--bins", "--target", TARGET])
            .env("CARGO_TARGET_DIR", &out)
            .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", INSTRUMENTATION)
            .env_remove("RUSTFLAGS"),
    )?;
    let mut count = Count::default();
    let targets = metadata["packages"].as_array().into_iter().flatten();
    for name in targets
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"] == serde_json::json!(["bin"]))
        .filter_map(|target| target["name"].as_str())
    {
        let corpus = out.join("corpus").join(name);
        let artifacts = out.join("artifacts").join(name);
        std::fs::create_dir_all(&corpus)
            .and_then(|()| std::fs::create_dir_all(&artifacts))
            .map_err(|source| Error::Io { doing: "creating", path: corpus.clone(), source })?;
        let ran = run::quiet(
            Command::new(out.join(TARGET).join("release").join(name))
                .arg(format!("-max_total_time={seconds}"))
                .args(["-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1", SEED])
                .arg(format!("-artifact_prefix={}/", artifacts.display()))
                .arg(&corpus),
        );
        match ran {
            Ok(()) => {
                eprintln!("  {name}: ok");
                count.passed += 1;
            }
            Err(error) => {
                eprintln!("  {name}: {error}");
                count.failed += 1;
            }
        }
    }
    Ok(count)
}
