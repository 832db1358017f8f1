// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask dist`: the distributed binary. Static and position-independent, so that it
//! runs in Firecracker's jailer, whose root has neither libraries nor /proc; then tried in such a
//! root.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::build::{self, Profile};
use crate::error::{IoContext, Result, task_error};
use crate::{paths, run, tiny_guest};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Build fast instead of fully optimized
    #[arg(long)]
    quick: bool,
    /// Do not test the binary in an empty root
    #[arg(long)]
    no_check: bool,
}

/// Builds and strips the binary; gives its path.
pub(crate) fn dist(options: &Options) -> Result<PathBuf> {
    let profile = if options.quick { Profile::TestRelease } else { Profile::Release };
    let built = build::ballast(profile)?;
    let dir = paths::target().join("dist");
    fs::create_dir_all(&dir).doing("creating", &dir)?;
    let binary = dir.join("ballast");
    run::quiet(Command::new("strip").arg("-o").arg(&binary).arg(&built))?;
    is_static(&binary)?;
    if !options.no_check {
        check_in_jail(&binary)?;
    }
    Ok(binary)
}

/// An ELF file without PT_INTERP needs no loader and no library.
fn is_static(binary: &Path) -> Result<()> {
    let mut readelf = Command::new("readelf");
    let output = readelf.args(["-lW"]).arg(binary).output().doing("reading", binary)?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || text.contains("INTERP") {
        return task_error(format!("{} is not static", binary.display()));
    }
    if !text.contains("DYN (") {
        return task_error(format!("{} is not position-independent", binary.display()));
    }
    Ok(())
}

/// Runs the binary in a root with only itself, a kernel and /dev/kvm, like the jailer's.
fn check_in_jail(binary: &Path) -> Result<()> {
    let node = fs::metadata("/dev/kvm").ok().filter(|meta| meta.file_type().is_char_device());
    let (true, Some(node)) = (rustix::process::geteuid().is_root(), node) else {
        eprintln!("not tried in an empty root: that needs root and /dev/kvm");
        return Ok(());
    };
    let root = paths::target().join("dist/root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("dev")).doing("creating", &root)?;
    fs::copy(binary, root.join("ballast")).doing("copying", binary)?;
    fs::write(root.join("kernel"), tiny_guest::kernel(tiny_guest::SAY_AND_RESET))
        .doing("writing a kernel to", &root)?;
    let device = node.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    run::quiet(Command::new("mknod").arg(root.join("dev/kvm")).args([
        "c",
        &major.to_string(),
        &minor.to_string(),
    ]))?;
    let mut jailed = Command::new("timeout");
    jailed.args(["60", "chroot"]).arg(&root).args(["/ballast", "run", "--kernel", "/kernel"]);
    jailed.args(["--memory", "16M", "--balloon", "target=0M", "--console", "file=/console"]);
    let output = jailed.stdin(Stdio::null()).output().doing("running chroot in", &root)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let console = fs::read(root.join("console")).unwrap_or_default();
    let _ = fs::remove_dir_all(&root);
    if !output.status.success() || console != b"!" {
        return task_error(format!("in an empty root: {}: {said}", output.status));
    }
    eprintln!("starts a guest in an empty root");
    Ok(())
}
