// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether the disk has room for what the steps leave in `target/`. A compiler that finds none says
//! so once for each file it writes, in the middle of unrelated messages; this says it first. And
//! whether CPUs and memory suffice for two outer machines.

use std::fs;
use std::path::Path;
use std::thread;

use rustix::fs::statvfs;

use crate::outer::Size;
use crate::paths;

/// What a run leaves in an empty `target/`, in MiB: builds for tests, for guests, for loom and for fuzzing,
/// and logs.
const FIRST_RUN_MIB: u64 = 12 << 10;
/// What a later run adds for changed crates, in MiB.
const LATER_RUN_MIB: u64 = 2 << 10;

/// Memory for what runs beside outer machines, mostly compilers, in MiB.
const BESIDE_MACHINES_MIB: u64 = 2 << 10;

/// Prints a warning if the disk may become full.
pub(super) fn warn() {
    let target = paths::target();
    let needed = if target.join("fuzz").exists() { LATER_RUN_MIB } else { FIRST_RUN_MIB };
    let Some(free) = free_mib(&target) else { return };
    if free < needed {
        eprintln!("{}", warning(&target, free, needed));
    }
}

/// Whether two outer machines can run side by side, and something else beside them.
pub(super) fn for_two_machines() -> bool {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let needed = 2 * u64::from(Size::TESTS.memory_mib) + BESIDE_MACHINES_MIB;
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    cpus > 1 && available_mib(&meminfo).is_some_and(|available| available >= needed)
}

/// `MemAvailable` of `/proc/meminfo`, in MiB.
fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? >> 10)
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

    #[test]
    fn memory_is_what_programs_can_have() {
        let meminfo = "MemTotal:       24731720 kB\nMemAvailable:   20480000 kB\n";
        assert_eq!(available_mib(meminfo), Some(20_000));
        assert_eq!(available_mib("MemTotal: 1 kB"), None);
        assert!(available_mib(&fs::read_to_string("/proc/meminfo").unwrap()).is_some());
    }
}
