// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control group that this process is in: where it limits memory, that limit and its stalls
//! count, not the host's (Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files").

use std::path::{Path, PathBuf};

use super::memory_figures::{HostFigures, read_now, stalls};

/// Where version 2 of control groups is mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// The folders of this process's group and those above it, innermost first.
#[derive(Debug, Clone, Default)]
pub(crate) struct ControlGroups(Vec<PathBuf>);

impl ControlGroups {
    /// Finds them; none on a host without version 2.
    pub(crate) fn find() -> Self {
        let text = read_now(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
            return Self::default();
        };
        let root = Path::new(ROOT);
        let own = root.join(path);
        Self(own.ancestors().take_while(|at| at.starts_with(root)).map(Into::into).collect())
    }

    /// The limits of those that have one.
    pub(crate) fn limits(&self) -> Vec<GroupLimits> {
        self.0.iter().filter_map(|folder| GroupLimits::read(folder)).collect()
    }

    /// `host`, limited by the tightest control group.
    pub(crate) fn narrow(&self, host: HostFigures) -> HostFigures {
        self.0.iter().fold(host, |host, folder| {
            let Some(limits) = GroupLimits::read(folder) else { return host };
            let Some([available, _]) = limits.room() else { return host };
            if host.available.is_some_and(|least| least <= available) {
                return host;
            }
            let pressure = read_now(&folder.join("memory.pressure")).unwrap_or_default();
            let [some, full] = stalls(&pressure);
            HostFigures {
                total: limits.limits.first().copied(),
                free: host.free,
                available: Some(available),
                some: some.or(host.some),
                full: full.or(host.full),
            }
        })
    }
}

/// Limits of a group, and its page cache, when they were read.
#[derive(Debug, Clone)]
pub(crate) struct GroupLimits {
    current: PathBuf,
    /// What is not throttled, and what is not killed, in bytes.
    limits: [u64; 2],
    /// Page cache that the kernel drops before it throttles anything, and before it kills.
    caches: [u64; 2],
}

impl GroupLimits {
    fn read(folder: &Path) -> Option<Self> {
        let text = |name: &str| read_now(&folder.join(name)).unwrap_or_default();
        let limit = |name: &str| text(name).trim().parse::<u64>().ok();
        let (high, max) = (limit("memory.high"), limit("memory.max"));
        let least = high.into_iter().chain(max).min()?;
        let current = folder.join("memory.current");
        let limits = [least, max.unwrap_or(u64::MAX)];
        let stat = text("memory.stat");
        let inactive = field(&stat, "inactive_file");
        let caches = [inactive, inactive.saturating_add(field(&stat, "active_file"))];
        Some(Self { current, limits, caches })
    }

    /// Bytes that the group can still use before it is throttled, and before it is full. `None` if
    /// its usage cannot be read.
    pub(crate) fn room(&self) -> Option<[u64; 2]> {
        let used: u64 = read_now(&self.current).ok()?.trim().parse().ok()?;
        let [high, max] = self.limits;
        let [inactive, all] = self.caches.map(|cache| used.saturating_sub(cache));
        Some([high.saturating_sub(inactive), max.saturating_sub(all)])
    }
}

/// A field of a group's memory.stat, in bytes; 0 if it is missing.
fn field(stat: &str, name: &str) -> u64 {
    let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let write = |at: &Path, name: &str, text: &str| {
            std::fs::write(at.join(name), text).unwrap();
        };
        write(folder.path(), "memory.max", "1000\n");
        write(folder.path(), "memory.current", "400\n");
        write(&inner, "memory.max", "max\n");
        write(&inner, "memory.high", "500\n");
        write(&inner, "memory.current", "300\n");
        write(&inner, "memory.pressure", "some avg10=7.50 avg60=0 avg300=0 total=1\n");
        let groups = ControlGroups(vec![inner, folder.path().to_owned()]);
        let host =
            HostFigures { total: Some(5000), available: Some(450), ..HostFigures::default() };
        let narrowed = groups.narrow(host);
        assert_eq!((narrowed.total, narrowed.available), (Some(500), Some(200)));
        assert_eq!(narrowed.some, Some(7.5));
        let short = HostFigures { available: Some(100), ..host };
        assert_eq!(groups.narrow(short), short);
    }

    #[test]
    fn room_ends_at_the_limit_that_throttles_and_at_the_one_that_kills() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        write("memory.max", "1000\n").unwrap();
        write("memory.high", "800\n").unwrap();
        write("memory.current", "700\n").unwrap();
        write("memory.stat", "anon 5\ninactive_file 50\n").unwrap();
        let groups = ControlGroups(vec![folder.path().to_owned()]);
        let room = |limits: &[GroupLimits]| limits.first().and_then(GroupLimits::room);
        assert_eq!(room(&groups.limits()), Some([150, 350]));
        let limits = groups.limits();
        // Usage is read each time.
        write("memory.current", "1100\n").unwrap();
        assert_eq!(room(&limits), Some([0, 0]));
        // Nothing is killed while there is page cache in use to drop.
        write("memory.stat", "inactive_file 50\nactive_file 200\n").unwrap();
        assert_eq!(room(&groups.limits()), Some([0, 150]));
        write("memory.stat", "inactive_file 50\n").unwrap();
        write("memory.high", "max\n").unwrap();
        write("memory.current", "700\n").unwrap();
        assert_eq!(room(&groups.limits()), Some([350, 350]));
        write("memory.max", "max\n").unwrap();
        assert_eq!(groups.limits().len(), 0);
    }
}
