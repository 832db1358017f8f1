// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each source file names its licence.

use super::sources;
use crate::error::{Result, task_error};

/// Files that have comments.
const SUFFIXES: [&str; 5] = [".rs", ".sh", ".c", ".h", ".config"];

/// Looks for the SPDX line in the first two lines of each file.
pub(crate) fn check() -> Result<()> {
    let names_licence =
        |text: &str| text.lines().take(2).any(|line| line.contains("SPDX-License-Identifier:"));
    let files = sources::read(&SUFFIXES)?;
    let without: Vec<_> =
        files.iter().filter(|(_, text)| !names_licence(text)).map(|(name, _)| &**name).collect();
    if without.is_empty() {
        return Ok(());
    }
    task_error(format!("no SPDX line at the top of:\n  {}", without.join("\n  ")))
}
