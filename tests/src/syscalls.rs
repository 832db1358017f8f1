// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counts the system calls of a process with the kernel's tracer (Linux,
//! Documentation/trace/histogram.rst). It slows every system call down: nothing is timed meanwhile.

use std::fs;
use std::path::Path;

use crate::{Error, Result};

/// The event of every system call's entry.
const EVENT: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter";
/// Counts by thread, for up to so many threads and system calls of the whole host.
const TRIGGER: &str = "hist:keys=common_pid,id:size=16384";

/// System calls of one process, counted from [`begin`](Self::begin) on.
#[derive(Debug)]
pub struct SyscallCount {
    pid: u32,
}

impl SyscallCount {
    /// Starts to count for all threads of process `pid`; `None` if the host's kernel has no tracer, or
    /// denies its use.
    #[must_use]
    pub fn begin(pid: u32) -> Option<Self> {
        fs::write(Path::new(EVENT).join("trigger"), TRIGGER).ok()?;
        Some(Self { pid })
    }

    /// The number of each system call, and how often it was made, by all threads together.
    pub fn end(self) -> Result<Vec<(u32, u64)>> {
        let doing = || Error::io("reading counts of system calls");
        let threads: Vec<u32> = fs::read_dir(format!("/proc/{}/task", self.pid))
            .map_err(doing())?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        let text = fs::read_to_string(Path::new(EVENT).join("hist")).map_err(doing())?;
        let mut sums: Vec<(u32, u64)> = Vec::new();
        for (thread, call, count) in text.lines().filter_map(parse) {
            if !threads.contains(&thread) {
                continue;
            }
            match sums.iter_mut().find(|(known, _)| *known == call) {
                Some((_, sum)) => *sum += count,
                None => sums.push((call, count)),
            }
        }
        sums.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Ok(sums)
    }
}

impl Drop for SyscallCount {
    fn drop(&mut self) {
        // The trigger may be gone already; the next one would then start from zero as well.
        let _ = fs::write(Path::new(EVENT).join("trigger"), format!("!{TRIGGER}"));
    }
}

/// `{ common_pid:       1234, id:         20 } hitcount:          5`: thread, system call, count.
fn parse(line: &str) -> Option<(u32, u32, u64)> {
    let mut numbers = line.strip_prefix('{')?.split([':', ',', '}']).map(str::trim);
    let mut field = |name: &str| -> Option<u64> {
        (numbers.next()? == name).then(|| numbers.next()?.parse().ok()).flatten()
    };
    let thread = u32::try_from(field("common_pid")?).ok()?;
    let call = u32::try_from(field("id")?).ok()?;
    Some((thread, call, field("hitcount")?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_lines_of_the_histogram_only() {
        let line = "{ common_pid:       1234, id:        232 } hitcount:          5";
        assert_eq!(parse(line), Some((1234, 232, 5)));
        assert_eq!(parse("# trigger info: hist:keys=common_pid,id:vals=hitcount"), None);
        assert_eq!(parse("{ common_pid:       1234 } hitcount:          5"), None);
        assert_eq!(parse("    Hits: 21"), None);
    }
}
