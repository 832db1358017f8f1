// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether the disk has room for what the steps leave in `target/`. A compiler that finds none says
//! so once for each file it writes, in the middle of unrelated messages; this says it first.

use std::fs;
use std::path::Path;

use rustix::fs::statvfs;

use crate::paths;

/// What a run leaves in an empty `target/`, in MiB: builds for tests, for guests, for loom and for fuzzing,
/// and logs.
const FIRST_RUN_MIB: u64 = 12 << 10;
/// What a later run adds for changed crates, in MiB.
const LATER_RUN_MIB: u64 = 2 << 10;

/// Prints a warning if the disk may become full.
pub(super) fn warn() {
    let target = paths::target();
    let needed = if target.join("fuzz").exists() { LATER_RUN_MIB } else { FIRST_RUN_MIB };
    let Some(free) = free_mib(&target) else { return };
    if free < needed {
        eprintln!("{}", warning(&target, free, needed));
    }
}

/// Free space where `folder` is, in MiB.
fn free_mib(folder: &Path) -> Option<u64> {
    fs::create_dir_all(folder).ok()?;
    let disk = statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize) >> 20)
}

fn warning(target: &Path, free: u64, needed: u64) -> String {
    format!(
        "warning: {} has {free} MiB free, and this run may need {needed}: free some space, or set \
         CARGO_TARGET_DIR to a folder on another disk",
        target.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_counted_where_the_folder_will_be() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_mib(&folder.path().join("not/there/yet")).unwrap() > 0);
        assert_eq!(free_mib(Path::new("/proc/none")), None);
    }
}
