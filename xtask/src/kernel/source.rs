// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An unpacked Linux source tree, never written to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{IoContext, Result, task_error};
use crate::lock::FileLock;
use crate::{apt, paths, run};

/// Debian's package of the sources, which is also the name of its tarball and its folder.
const PACKAGE: &str = "linux-source-6.12";
/// The series that our patches are made for.
const SERIES: &str = "6.12";
/// What a build needs besides the sources.
const TOOLS: [&str; 11] = [
    "bc",
    "bison",
    "bzip2",
    "cpio",
    "flex",
    "gcc",
    "libelf-dev",
    "make",
    "patch",
    "perl",
    "xz-utils",
];

/// A source tree and its version.
#[derive(Debug)]
pub(crate) struct Source {
    tree: PathBuf,
    version: String,
    identity: String,
}

impl Source {
    /// Takes the user's tree where one is given, else Debian's package, installed and unpacked.
    pub(crate) fn find(given: Option<&Path>) -> Result<Self> {
        let Some(tree) = given else { return Self::debian() };
        let tree = fs::canonicalize(tree).doing("looking for the kernel source", tree)?;
        let version = version_of(&tree)?;
        // Two trees of one version may differ: the place tells them apart.
        let identity = format!("{version} {}", tree.display());
        Ok(Self { tree, version, identity })
    }

    fn debian() -> Result<Self> {
        let mut packages = TOOLS.to_vec();
        packages.push(PACKAGE);
        apt::ensure("the guest kernel", &packages)?;

        let revision =
            run::capture(Command::new("dpkg-query").args(["-W", "-f=${Version}", PACKAGE]))?;
        let sources = paths::cache()?.join("src");
        fs::create_dir_all(&sources).doing("creating", &sources)?;
        let tree = sources.join(format!("{PACKAGE}_{revision}"));
        let _lock = FileLock::acquire(&sources.join("unpack.lock"))?;
        if !tree.is_dir() {
            let tarball = PathBuf::from(format!("/usr/src/{PACKAGE}.tar.xz"));
            eprintln!("unpacking {}", tarball.display());
            let unpacking =
                tempfile::tempdir_in(&sources).doing("creating a folder in", &sources)?;
            run::quiet(
                Command::new("tar").arg("-xJf").arg(&tarball).arg("-C").arg(unpacking.path()),
            )?;
            let unpacked = unpacking.path().join(PACKAGE);
            fs::rename(&unpacked, &tree).doing("moving into the cache", &unpacked)?;
        }
        let version = version_of(&tree)?;
        Ok(Self { tree, version, identity: revision })
    }

    /// The tree's folder.
    pub(crate) fn tree(&self) -> &Path {
        &self.tree
    }

    /// `6.12.y`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// The identity of this tree.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }
}

/// Reads the version from the head of the tree's Makefile.
fn version_of(tree: &Path) -> Result<String> {
    let makefile = tree.join("Makefile");
    let text = fs::read_to_string(&makefile).doing("reading", &makefile)?;
    let field = |name: &str| {
        text.lines().take(10).find_map(|line| line.strip_prefix(name)?.trim().strip_prefix('='))
    };
    let (Some(major), Some(minor), Some(point)) =
        (field("VERSION"), field("PATCHLEVEL"), field("SUBLEVEL"))
    else {
        return task_error(format!("{} is not a Linux source tree", tree.display()));
    };
    let version = format!("{}.{}.{}", major.trim(), minor.trim(), point.trim());
    if !version.starts_with(&format!("{SERIES}.")) {
        return task_error(format!(
            "{} is Linux {version}; Ballast's patches are for {SERIES}.y",
            tree.display()
        ));
    }
    Ok(version)
}
