// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian packages that are only unpacked, never installed: their scripts do not run, and the
//! system is unchanged. Also finds the libraries that programs need elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{IoContext, Result, task_error};
use crate::{apt, run};

/// Downloads `package` and unpacks it into the folder `tree`, which is made where it is missing.
/// Downloads go to a folder in `cache` that is gone afterwards.
pub(crate) fn unpack(package: &str, cache: &Path, tree: &Path) -> Result<()> {
    eprintln!("test bed: downloading {package}");
    let work = tempfile::tempdir_in(cache).doing("creating a folder in", cache)?;
    let download =
        || run::quiet(apt::apt_get().args(["download", package]).current_dir(work.path()));
    // Lists that are out of date name a package that is no longer there.
    if download().is_err() {
        apt::update()?;
        download()?;
    }
    let Some(archive) = fs::read_dir(work.path())
        .doing("reading", work.path())?
        .flatten()
        .map(|file| file.path())
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
    else {
        return task_error(format!("apt-get download {package} left no package behind"));
    };
    run::quiet(Command::new("dpkg").arg("-x").arg(&archive).arg(tree))
}

/// Where the program `name` of `package` is on this machine.
pub(crate) fn program(name: &str, package: &str) -> Result<PathBuf> {
    apt::ensure(name, &[package])?;
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(name)).find(|at| at.is_file());
    match found {
        // The file itself: in the payload a link would lead nowhere.
        Some(path) => path.canonicalize().doing("resolving", path),
        None => task_error(format!("{name} is missing: apt-get install {package}")),
    }
}

/// The shared libraries of a binary, and its interpreter; none of a static one. Those in the
/// folder `first`, if given, come before this machine's own.
pub(crate) fn libraries(binary: &Path, first: Option<&Path>) -> Vec<PathBuf> {
    let mut ldd = Command::new("ldd");
    ldd.arg(binary);
    if let Some(first) = first {
        ldd.env("LD_LIBRARY_PATH", first);
    }
    // ldd fails where there is nothing to list.
    let text = run::capture(&mut ldd).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}
