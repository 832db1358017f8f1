// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Signs of life of an outer machine: it writes to a file every few seconds of its own time (see
//! `pulse.rs` of the agent).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::outer::Clock;

/// After this time without a sign of life a machine counts as hung.
const STANDSTILL: Duration = Duration::from_secs(120);
/// The same for one that gets no CPU time at all.
const IDLE_STANDSTILL: Duration = Duration::from_secs(600);

/// The last sign of life.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    clock: Clock,
    pid: u32,
    written: Option<SystemTime>,
    /// When it was seen, and the CPU time that QEMU had had by then.
    seen: (Instant, Duration),
}

impl Heartbeat {
    /// Of the machine that QEMU, process `pid`, has just begun to emulate.
    pub(crate) fn new(clock: Clock, pid: u32) -> Self {
        Self { clock, pid, written: None, seen: (Instant::now(), Duration::ZERO) }
    }

    /// Whether nothing has been written to `alive` for too long. A machine that counts instructions
    /// is judged by the CPU time that passed: if it gets little, this machine is busy.
    pub(crate) fn has_stopped(&mut self, alive: &Path) -> bool {
        let written = fs::metadata(alive).and_then(|file| file.modified()).ok();
        let cpu = cpu_time(self.pid).unwrap_or_default();
        if written != self.written {
            self.written = written;
            self.seen = (Instant::now(), cpu);
        }
        let silence = self.seen.0.elapsed();
        match self.clock {
            Clock::Host => silence > STANDSTILL,
            Clock::Instructions => {
                cpu.saturating_sub(self.seen.1) > STANDSTILL || silence > IDLE_STANDSTILL
            }
        }
    }
}

/// CPU time of process `pid` so far.
fn cpu_time(pid: u32) -> Option<Duration> {
    parse_cpu_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Of proc_pid_stat(5): utime (14) and stime (15).
fn parse_cpu_time(text: &str) -> Option<Duration> {
    // The name, the second field, may have spaces and brackets.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    // USER_HZ is 100 on x86.
    Some(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_that_of_the_process_and_its_kernel() {
        let line = "17 (a )b) S 1 17 17 0 -1 4194560 900 0 0 0 120 30 0 0 20 0 4 0 77 1 2";
        assert_eq!(parse_cpu_time(line), Some(Duration::from_millis(1500)));
        assert!(cpu_time(std::process::id()).is_some());
    }

    #[test]
    fn a_machine_that_writes_has_not_stopped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut heartbeat = Heartbeat::new(Clock::Host, std::process::id());
        assert!(!heartbeat.has_stopped(file.path()));
        let long_ago = Instant::now().checked_sub(STANDSTILL + STANDSTILL).unwrap();
        heartbeat.seen.0 = long_ago;
        assert!(heartbeat.has_stopped(file.path()));
        // One that counts instructions may have been given no time.
        heartbeat.clock = Clock::Instructions;
        heartbeat.seen.1 = cpu_time(std::process::id()).unwrap();
        assert!(!heartbeat.has_stopped(file.path()));
        let later = SystemTime::now() + Duration::from_secs(5);
        file.as_file().set_modified(later).unwrap();
        heartbeat.clock = Clock::Host;
        assert!(!heartbeat.has_stopped(file.path()));
    }
}
