// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/srv/packages` of an image for tests: a package and its index, in the form that a `file:`
//! source of apt has, so that a guest without a network can install something.

use std::fs;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::error::{IoContext, Result, task_error};
use crate::{apt, run};

/// A package that only needs the C library.
const PACKAGE: &str = "hello";

/// Adds the folder to the tree at `root`.
pub(super) fn add(root: &Path) -> Result<()> {
    let folder = root.join("srv/packages");
    fs::create_dir_all(&folder).doing("creating", &folder)?;
    run::quiet(apt::apt_get().args(["download", PACKAGE]).current_dir(&folder))?;
    let archive = fs::read_dir(&folder)
        .doing("reading", &folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let Some(archive) = archive else {
        return task_error(format!("apt-get download {PACKAGE} left no package behind"));
    };
    let contents = fs::read(&archive).doing("reading", &archive)?;
    let control = run::capture(Command::new("dpkg-deb").arg("-f").arg(&archive))?;
    let digest: String = Sha256::digest(&contents).iter().map(|b| format!("{b:02x}")).collect();
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let index = format!(
        "{}\nFilename: ./{name}\nSize: {}\nSHA256: {digest}\n",
        control.trim_end(),
        contents.len()
    );
    let path = folder.join("Packages");
    fs::write(&path, index).doing("writing", &path)
}
