// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host as its own files tell: free memory, and how long tasks waited for some.

use std::fs;

/// What the host says. `None` where it does not: another kernel, another mount.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Host {
    /// Memory in all, in bytes.
    pub(super) total: Option<u64>,
    /// Free, in bytes.
    pub(super) free: Option<u64>,
    /// What a new workload could have, in bytes.
    pub(super) available: Option<u64>,
    /// Share of the last ten seconds in which some task waited for memory, in per cent
    /// (Documentation/accounting/psi.rst).
    pub(super) some: Option<f64>,
    /// The same, in which all of them did.
    pub(super) full: Option<f64>,
}

impl Host {
    pub(super) fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&text("/proc/meminfo"), &text("/proc/pressure/memory"))
    }

    fn parse(meminfo: &str, pressure: &str) -> Self {
        let bytes = |name: &str| {
            let rest =
                meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        let share = |name: &str| {
            let rest = pressure.lines().find_map(|line| line.strip_prefix(name))?;
            let word = rest.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
            word.parse::<f64>().ok()
        };
        Self {
            total: bytes("MemTotal"),
            free: bytes("MemFree"),
            available: bytes("MemAvailable"),
            some: share("some"),
            full: share("full"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_host() {
        let host = Host::parse(
            "MemTotal:       16 kB\nMemFree:         8 kB\nMemAvailable:   12 kB\n",
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.25 avg60=0 total=1\n",
        );
        let expected = Host {
            total: Some(16384),
            free: Some(8192),
            available: Some(12288),
            some: Some(1.5),
            full: Some(0.25),
        };
        assert_eq!(host, expected);
        assert_eq!(Host::parse("", "some avg10=x"), Host::default());
    }
}
