// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each source file says under which licence it is.

use std::fs;
use std::process::Command;

use crate::error::{IoContext, Result, task_error};
use crate::{paths, run};

/// What has comments to say it in.
const SUFFIXES: [&str; 5] = [".rs", ".sh", ".c", ".h", ".config"];

/// Looks at all files that git knows.
pub(crate) fn check() -> Result<()> {
    let root = paths::workspace();
    let list = run::capture(Command::new("git").arg("ls-files").current_dir(&root))?;
    let mut without = Vec::new();
    for name in list.lines().filter(|name| SUFFIXES.iter().any(|suffix| name.ends_with(suffix))) {
        let path = root.join(name);
        // Deleted in the work tree, and not committed yet.
        if !path.is_file() {
            continue;
        }
        let text = fs::read_to_string(&path).doing("reading", &path)?;
        if !text.lines().take(2).any(|line| line.contains("SPDX-License-Identifier:")) {
            without.push(name);
        }
    }
    if without.is_empty() {
        return Ok(());
    }
    task_error(format!("no SPDX line at the top of:\n  {}", without.join("\n  ")))
}
