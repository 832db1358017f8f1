// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's own style check, from the tree that the patches are for.

use std::process::Command;

use crate::error::{IoContext, Result, task_error};
use crate::kernel::{Series, Source};
use crate::{paths, run};

/// Kinds of message that do not concern an out-of-tree series: there is no MAINTAINERS entry for
/// our files, and the subject is not that of a mail. Nor do names of the kernel's own that it makes
/// by macros, such as `__SetPageOffline`, which the check does not find where it looks.
const IGNORED: &str = "FILE_PATH_CHANGES,EMAIL_SUBJECT,CAMELCASE";

/// Checks each patch of the series; any error, warning or remark is a fault.
pub(crate) fn check() -> Result<()> {
    let source = Source::find(None)?;
    let series = Series::read(&paths::workspace().join("guest-kernel"))?;
    // It leaves a list of names where it runs.
    let work = tempfile::tempdir().doing("creating a folder in", std::env::temp_dir())?;
    let mut faults = Vec::new();
    for patch in series.paths() {
        let mut checkpatch = Command::new("perl");
        checkpatch
            .current_dir(work.path())
            .arg(source.tree().join("scripts/checkpatch.pl"))
            .arg(format!("--root={}", source.tree().display()))
            .args(["--strict", "--terse", "--no-summary", "--ignore", IGNORED])
            .arg(patch);
        if let Err(error) = run::quiet(&mut checkpatch) {
            faults.push(error.to_string());
        }
    }
    if faults.is_empty() { Ok(()) } else { task_error(faults.join("\n")) }
}
