// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! make, and the cache entry that comes of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::config::Wanted;
use super::{Series, Source};
use crate::error::{IoContext, Result};
use crate::run;

/// Builds in a temporary folder of `cache` and renames the result to `entry`, so that an entry is
/// whole or absent.
pub(crate) fn build(
    source: &Source,
    series: &Series,
    config: &Wanted,
    cache: &Path,
    entry: &Path,
) -> Result<()> {
    let work = tempfile::Builder::new()
        .prefix("build-")
        .tempdir_in(cache)
        .doing("creating a folder in", cache)?;
    let (tree, objects) = (work.path().join("linux"), work.path().join("objects"));
    fs::create_dir(&objects).doing("creating", &objects)?;
    series.apply_to_copy(source.tree(), &tree, source.version())?;

    configure(&tree, &objects, config)?;
    run::with_progress(
        make(&tree, &objects).args(["vmlinux", "bzImage"]),
        "kernel",
        "objects",
        |line| line.starts_with("  CC ") || line.starts_with("  AS "),
    )?;

    let result = work.path().join("result");
    fs::create_dir(&result).doing("creating", &result)?;
    for (from, to) in
        [("vmlinux", "vmlinux"), ("arch/x86/boot/bzImage", "bzImage"), (".config", "config")]
    {
        let from = objects.join(from);
        fs::copy(&from, result.join(to)).doing("copying", &from)?;
    }
    // Symbols would only make every boot copy them around.
    run::quiet(Command::new("strip").arg("--strip-debug").arg(result.join("vmlinux")))?;
    if entry.exists() {
        fs::remove_dir_all(entry).doing("removing an incomplete", entry)?;
    }
    fs::rename(&result, entry).doing("moving into the cache", entry)
}

fn configure(tree: &Path, objects: &Path, config: &Wanted) -> Result<()> {
    run::quiet(make(tree, objects).arg("tinyconfig"))?;
    run::quiet(
        Command::new(tree.join("scripts/kconfig/merge_config.sh"))
            .args(["-m", "-O"])
            .arg(objects)
            .arg(objects.join(".config"))
            .args(config.fragments())
            .current_dir(tree),
    )?;
    run::quiet(make(tree, objects).arg("olddefconfig"))?;
    config.check(&objects.join(".config"))
}

/// A `make` for the tree, with its output in `objects`.
pub(super) fn make(tree: &Path, objects: &Path) -> Command {
    let mut command = Command::new("make");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    command.arg("-C").arg(tree).arg(format!("O={}", objects.display())).arg(format!("-j{jobs}"));
    // A user's compiler cache makes a rebuild after a change of one patch quick, if configured to
    // ignore the folder, which has another name each time, is not part of the input.
    if run::in_path("ccache") {
        command.arg("CC=ccache gcc").env("CCACHE_NOHASHDIR", "1");
        if let Some(work) = tree.parent() {
            command.env("CCACHE_BASEDIR", work);
        }
    }
    // The same input gives the same image, independent of user and time.
    command
        .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
        .env("KBUILD_BUILD_USER", "ballast")
        .env("KBUILD_BUILD_HOST", "ballast")
        .env("KBUILD_BUILD_VERSION", "1")
        .env_remove("MAKEFLAGS");
    command
}
