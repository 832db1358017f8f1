// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The files that git knows, as the checks of sources see them.

use std::fs;
use std::process::Command;

use crate::error::{IoContext, Result};
use crate::{paths, run};

/// Every file whose name ends with one of `suffixes`: its path from the workspace's root, with `/`,
/// and its text. Files that were deleted but not yet committed are left out.
pub(super) fn read(suffixes: &[&str]) -> Result<Vec<(String, String)>> {
    let root = paths::workspace();
    let tracked = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let list = run::capture(Command::new("git").args(tracked).current_dir(&root))?;
    let mut files = Vec::new();
    for name in list.lines().filter(|name| suffixes.iter().any(|suffix| name.ends_with(suffix))) {
        let path = root.join(name);
        if path.is_file() {
            files.push((name.to_owned(), fs::read_to_string(&path).doing("reading", &path)?));
        }
    }
    Ok(files)
}
