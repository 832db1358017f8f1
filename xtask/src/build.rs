// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Builds the programs that run outside cargo: Ballast itself, the tests' programs, the agent. All
//! are linked statically, so that they run in a machine that has nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Result;
use crate::{paths, run};

/// What the programs are built for. Naming it keeps the static flag off build scripts and
/// procedural macros, and these builds apart from the developer's own.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// How programs are optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Optimised but quick to build: tests and the demo.
    TestRelease,
    /// Like a release: benches.
    Release,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::TestRelease => "test-release",
            Self::Release => "release",
        }
    }
}

/// The programs, built.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) ballast: PathBuf,
    pub(crate) agent: PathBuf,
    pub(crate) guest_tests: PathBuf,
    pub(crate) guest_bench: PathBuf,
    pub(crate) guest_demo: PathBuf,
}

/// Builds all of them.
pub(crate) fn programs(profile: Profile) -> Result<Programs> {
    eprintln!("building Ballast and the programs of the test bed");
    let dir = cargo_build(profile, &["ballast-vmm", "ballast-tests", "guest-agent"])?;
    Ok(Programs {
        ballast: dir.join("ballast"),
        agent: stripped(&dir.join("guest-agent"))?,
        guest_tests: dir.join("guest-tests"),
        guest_bench: dir.join("guest-bench"),
        guest_demo: dir.join("guest-demo"),
    })
}

/// Builds only Ballast; returns its path.
pub(crate) fn ballast(profile: Profile) -> Result<PathBuf> {
    Ok(cargo_build(profile, &["ballast-vmm"])?.join("ballast"))
}

/// Builds Ballast like `cargo test`, for uses without speed requirements; returns its path.
pub(crate) fn ballast_for_tests() -> Result<PathBuf> {
    run::show(cargo().args(["build", "--locked", "--quiet", "-p", "ballast-vmm"]))?;
    Ok(paths::target().join("debug/ballast"))
}

/// Builds only the agent; returns its path.
pub(crate) fn agent() -> Result<PathBuf> {
    stripped(&cargo_build(Profile::TestRelease, &["guest-agent"])?.join("guest-agent"))
}

/// A copy without symbols: every guest unpacks it when it boots.
fn stripped(binary: &Path) -> Result<PathBuf> {
    let to = binary.with_extension("stripped");
    run::quiet(Command::new("strip").arg("-o").arg(&to).arg(binary))?;
    Ok(to)
}

/// Builds the binaries of `packages`; gives the folder that they are in.
fn cargo_build(profile: Profile, packages: &[&str]) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo
        .args(["build", "--locked", "--quiet", "--target", TARGET, "--bins"])
        .args(["--profile", profile.name()])
        .args(packages.iter().flat_map(|package| ["-p", package]))
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env_remove("RUSTFLAGS");
    run::show(&mut cargo)?;
    Ok(paths::target().join(TARGET).join(profile.name()))
}

/// The cargo that runs xtask, in the checkout's root.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::workspace());
    cargo
}
