// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's state from its files: available memory, and memory stalls.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest text that is read of one of the kernel's files.
const MAX_TEXT: u64 = 64 << 10;

/// The host's figures. `None` if unavailable on this kernel or mount.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HostFigures {
    /// Memory in all, in bytes.
    pub total: Option<u64>,
    /// Free, in bytes.
    pub free: Option<u64>,
    /// Memory available to a new workload, in bytes.
    pub available: Option<u64>,
    /// Share of the last ten seconds in which some task stalled on memory, in percent
    /// (Documentation/accounting/psi.rst). `None` if the kernel was built without PSI, or booted
    /// with `psi=0`.
    pub some: Option<f64>,
    /// The same, in which all of them did.
    pub full: Option<f64>,
}

impl HostFigures {
    /// Reads /proc/meminfo and /proc/pressure/memory.
    pub fn read() -> Self {
        Self::parse(&text("/proc/meminfo"), &text("/proc/pressure/memory"))
    }

    /// Reads /proc/meminfo only: how long tasks wait is not known.
    pub fn read_memory() -> Self {
        Self::parse(&text("/proc/meminfo"), "")
    }

    fn parse(meminfo: &str, pressure: &str) -> Self {
        let bytes = |name: &str| {
            let rest =
                meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        let [some, full] = stalls(pressure);
        Self {
            total: bytes("MemTotal"),
            free: bytes("MemFree"),
            available: bytes("MemAvailable"),
            some,
            full,
        }
    }
}

/// The text of a kernel file; nothing if it cannot be read.
fn text(path: &str) -> String {
    read_now(Path::new(path)).unwrap_or_default()
}

/// The shares of the last ten seconds in a file of pressure stall information: `some` and `full`.
pub(crate) fn stalls(pressure: &str) -> [Option<f64>; 2] {
    ["some", "full"].map(|name| {
        let rest = pressure.lines().find_map(|line| line.strip_prefix(name))?;
        let word = rest.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
        word.parse::<f64>().ok().filter(|share| share.is_finite())
    })
}

/// Reads a kernel file without blocking.
pub(crate) fn read_now(path: &Path) -> io::Result<String> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut text = String::new();
    file.take(MAX_TEXT).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_host() {
        let host = HostFigures::parse(
            "MemTotal:       16 kB\nMemFree:         8 kB\nMemAvailable:   12 kB\n",
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.25 avg60=0 total=1\n",
        );
        let expected = HostFigures {
            total: Some(16384),
            free: Some(8192),
            available: Some(12288),
            some: Some(1.5),
            full: Some(0.25),
        };
        assert_eq!(host, expected);
        assert_eq!(HostFigures::parse("", "some avg10=x"), HostFigures::default());
        assert_eq!(HostFigures::parse("", "some avg10=NaN"), HostFigures::default());
    }

    #[test]
    fn this_host_says_how_much_memory_it_has() {
        assert!(HostFigures::read().total.is_some_and(|bytes| bytes > 0));
    }
}
