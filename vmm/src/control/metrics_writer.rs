// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The metrics file, the timer of its lines, and the counters that no device keeps.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mm::budget::Budget;
use mm::units::SaturatingInto;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use serde_json::{Map, Value, json};

use crate::api::stats::ApiStats;
use crate::config::MetricsConfig;
use crate::metrics::{MetricsError, MetricsFile, PERIOD};

/// Writes the lines of one machine.
pub(super) struct MetricsWriter {
    file: Option<MetricsFile>,
    timer: OwnedFd,
    api: Arc<ApiStats>,
    /// When the parent started this process, and how long it took from there to the guest's start.
    parent_us: Option<u64>,
    startup_us: u64,
    missed_lines: u64,
    pause: Latency,
    resume: Latency,
}

/// How long an act took, in microseconds, rounded up: 0 is one that did not happen yet.
#[derive(Debug, Default, Clone, Copy)]
struct Latency {
    /// From the request.
    asked_us: u64,
    /// From when the machine's owner took it up.
    started_us: u64,
}

impl Latency {
    /// The act that was asked for and started then, and is done now.
    fn since(asked: Instant, started: Instant) -> Self {
        let now = Instant::now();
        let up = |from| now.duration_since(from).as_nanos().div_ceil(1000).saturating_u64();
        Self { asked_us: up(asked), started_us: up(started) }
    }
}

impl MetricsWriter {
    /// No file yet; `parent_us` is when the parent started this process, by the monotonic clock.
    ///
    /// # Errors
    ///
    /// The host has no more file descriptors.
    pub(super) fn new(api: Arc<ApiStats>, parent_us: Option<u64>) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self {
            file: None,
            timer,
            api,
            parent_us,
            startup_us: 0,
            missed_lines: 0,
            pause: Latency::default(),
            resume: Latency::default(),
        })
    }

    /// The descriptor that is readable when a line is due.
    pub(super) fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Whether a line is due; clears that state.
    pub(super) fn take_due(&self) -> bool {
        // An error means that the timer was read before.
        rustix::io::read(&self.timer, &mut [0; 8]).is_ok()
    }

    /// Whether there is a file.
    pub(super) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Writes lines to the file of `config` from now on, for the machine of this name.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub(super) fn open(&mut self, config: MetricsConfig, id: &str) -> Result<(), MetricsError> {
        self.file = Some(MetricsFile::open(config, id)?);
        Ok(())
    }

    /// The guest starts now.
    pub(super) fn note_start(&mut self) {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        let now_us = now.as_micros().saturating_u64();
        self.startup_us = self.parent_us.map_or(0, |then| now_us.saturating_sub(then));
    }

    /// The machine was paused: asked for and begun then, done now.
    pub(super) fn note_pause(&mut self, asked: Instant, started: Instant) {
        self.pause = Latency::since(asked, started);
    }

    /// The machine was resumed: asked for and begun then, done now.
    pub(super) fn note_resume(&mut self, asked: Instant, started: Instant) {
        self.resume = Latency::since(asked, started);
    }

    /// Starts the timer.
    ///
    /// # Errors
    ///
    /// The host refuses.
    pub(super) fn start_timer(&self) -> io::Result<()> {
        let seconds = PERIOD.as_secs().saturating_i64();
        let period = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let every = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &every)?;
        Ok(())
    }

    /// Writes the difference between `totals` and the last line. Without a file it does nothing, as
    /// in Firecracker.
    ///
    /// # Errors
    ///
    /// The line is lost.
    pub(super) fn write(&mut self, totals: Value) -> Result<(), MetricsError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write(totals).inspect_err(|_| self.missed_lines += 1)
    }

    /// Lines that were lost.
    pub(super) fn missed_lines(&self) -> u64 {
        self.missed_lines
    }

    /// Bytes of lines that were dropped.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, MetricsFile::lost_bytes)
    }

    /// Places for connections to the API.
    pub(super) fn connections(&self) -> &Arc<Budget> {
        &self.api.connections.0
    }

    /// The groups of the API, of the start, and of pauses.
    pub(super) fn groups(&self) -> Map<String, Value> {
        let mut groups = self.api.groups();
        groups.insert("api".into(), json!(*self.api));
        groups.insert("api_server".into(), json!({"process_startup_time_us": self.startup_us}));
        groups.insert(
            "latencies_us".into(),
            json!({
                "pause_vm": self.pause.asked_us,
                "vmm_pause_vm": self.pause.started_us,
                "resume_vm": self.resume.asked_us,
                "vmm_resume_vm": self.resume.started_us,
            }),
        );
        groups
    }
}
