// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on counters, and the lines of the metrics file.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::virtio::{LongestHold, counts_cpu_time};
use mm::budget::Budget;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde_json::{Map, Value, json};
use tracing::warn;

use super::{Controller, failed};
use crate::api::metrics::{MetricsAction, MetricsReply};
use crate::api::stats::ApiStats;
use crate::api::{Refusal, Reply};
use crate::config::MetricsConfig;
use crate::metrics::{self, MetricsFile, PERIOD};
use crate::vcpu::{ExitKind, ServedTime};

/// The metrics file, the timer of its lines, and the counters that no device keeps.
pub(super) struct MetricsWriter {
    file: Option<MetricsFile>,
    timer: OwnedFd,
    api: Arc<ApiStats>,
    /// When the parent started this process, and how long it took from there to the guest's start.
    parent_us: Option<u64>,
    startup_us: u64,
    missed_lines: u64,
    /// How long the last pause and the last resume took.
    pub(super) latencies: Latencies,
}

/// How long the last act of each kind took.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    pub(super) pause: Latency,
    pub(super) resume: Latency,
}

/// How long an act took, in microseconds, rounded up: 0 is one that did not happen yet.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Latency {
    /// From the request.
    asked_us: u64,
    /// From when the machine's owner took it up.
    started_us: u64,
}

impl Latency {
    /// The act that was asked for and started then, and is done now.
    pub(super) fn since(asked: Instant, started: Instant) -> Self {
        let up = |time: Duration| u64::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
        Self { asked_us: up(asked.elapsed()), started_us: up(started.elapsed()) }
    }
}

impl MetricsWriter {
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
            latencies: Latencies::default(),
        })
    }

    /// The descriptor that is readable when a line is due.
    pub(super) fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

impl Controller {
    pub(super) fn metrics_action(&mut self, action: MetricsAction) -> Result<Reply, Refusal> {
        match action {
            MetricsAction::Get => Ok(MetricsReply(self.totals()).into()),
            MetricsAction::Set(metrics) => self.set_metrics(metrics).map(|()| Reply::Done),
        }
    }

    /// Opens the metrics file; once.
    ///
    /// # Errors
    ///
    /// The file is set already, or cannot be opened.
    pub fn set_metrics(&mut self, config: MetricsConfig) -> Result<(), Refusal> {
        if self.metrics.file.is_some() {
            return Err(Refusal::Failed("The metrics file is set already.".into()));
        }
        self.metrics.file = Some(MetricsFile::open(config.clone(), &self.id).map_err(failed)?);
        self.config.metrics = Some(config);
        Ok(())
    }

    /// The first line, and the timer of the others: when the machine has started, as in
    /// Firecracker.
    pub(super) fn start_metrics(&mut self) -> Result<(), Refusal> {
        let micros =
            |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now_us = micros(std::time::Duration::try_from(now).unwrap_or_default());
        self.metrics.startup_us =
            self.metrics.parent_us.map_or(0, |then| now_us.saturating_sub(then));
        if self.metrics.file.is_none() {
            return Ok(());
        }
        self.flush_metrics()?;
        let seconds = i64::try_from(PERIOD.as_secs()).unwrap_or(i64::MAX);
        let period = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let every = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&self.metrics.timer, TimerfdTimerFlags::empty(), &every).map_err(failed)?;
        Ok(())
    }

    /// All counters since the start, by group.
    fn totals(&self) -> Value {
        let mut groups = self.metrics.api.groups();
        groups.insert("api".into(), json!(*self.metrics.api));
        groups.insert("monitor".into(), self.monitor_totals());
        groups.insert(
            "api_server".into(),
            json!({"process_startup_time_us": self.metrics.startup_us}),
        );
        let Latencies { pause, resume } = &self.metrics.latencies;
        groups.insert(
            "latencies_us".into(),
            json!({
                "pause_vm": pause.asked_us,
                "vmm_pause_vm": pause.started_us,
                "resume_vm": resume.asked_us,
                "vmm_resume_vm": resume.started_us,
            }),
        );
        let lost = self.log.lost();
        groups.insert(
            "logger".into(),
            json!({
                "missed_log_count": lost.records,
                "missed_metrics_count": self.metrics.missed_lines,
            }),
        );
        if let Some(policy) = self.policy_counters() {
            groups.insert("memory_policy".into(), json!(policy));
        }
        groups.insert("mmds".into(), self.mmds_totals());
        if let Some(vm) = &self.vm {
            let count = |kind| vm.exit_counts().iter().map(|cpu| cpu.get(kind)).sum::<u64>();
            let mut vcpu: Map<String, Value> = ExitKind::ALL
                .iter()
                .map(|&kind| (kind.name().to_owned(), count(kind).into()))
                .collect();
            for kind in ExitKind::SERVED {
                let served = vm.exit_counts().iter().map(|cpu| cpu.time(kind));
                let Some(time) = served.reduce(ServedTime::with) else { continue };
                let us = |ns: u64| ns.div_ceil(1000);
                let aggregate = json!({
                    "min_us": us(time.min_ns),
                    "max_us": us(time.max_ns),
                    "sum_us": us(time.sum_ns),
                });
                vcpu.insert(format!("{}_agg", kind.name()), aggregate);
            }
            groups.insert("vcpu".into(), vcpu.into());
            if let Some(balloon) = vm.balloon() {
                groups.insert("balloon".into(), balloon_group(&balloon.lock().counters()));
            }
            let budgets: Map<String, Value> =
                vm.budgets().iter().map(|b| (b.name().to_owned(), budget_group(b))).collect();
            groups.insert("budgets".into(), budgets.into());
            if let Ok(gpu) = self.gpu_status() {
                groups.insert("gpu".into(), json!(gpu.counters));
            }
            let devices = vm.devices();
            for drive in &devices.drives {
                let counters = json!(drive.handle.counters());
                groups.insert(format!("block_{}", drive.id), counters);
            }
            for interface in &devices.interfaces {
                let counters = json!(interface.handle.counters());
                groups.insert(format!("net_{}", interface.id), counters);
            }
            if let Some(vsock) = &devices.vsock {
                groups.insert("vsock".into(), json!(vsock.handle.counters()));
            }
            if let Some(entropy) = &devices.entropy {
                groups.insert("entropy".into(), json!(entropy.counters()));
            }
        }
        metrics::completed(groups).into()
    }

    /// The metadata service on all interfaces.
    fn mmds_totals(&self) -> Value {
        let mut group = json!(**self.mmds.tcp_counters());
        group["rx_invalid_token"] = json!(self.mmds.token_counters().rx_invalid_token);
        group["rx_no_token"] = json!(self.mmds.token_counters().rx_no_token);
        group
    }

    /// How long the monitor was held up, in microseconds, and what it could not say.
    fn monitor_totals(&self) -> Value {
        let lost_log = self.log.lost();
        let mut turns = vec![("main".to_owned(), self.events.longest_turn())];
        let mut holds = Vec::new();
        let mut lost_output = 0;
        if let Some(vm) = &self.vm {
            lost_output = vm.devices().platform.lost_output.bytes();
            turns.extend(vm.longest_turns().map(|(name, turn)| (name.to_owned(), turn)));
            holds.extend(vm.longest_holds());
        }
        let figures = |of: &[(String, &LongestHold)], figure: fn(&LongestHold) -> u64| {
            let figures = of.iter().map(|(name, longest)| (name.clone(), figure(longest).into()));
            Value::Object(figures.collect())
        };
        let mut totals = json!({
            "longest_turn_us": figures(&turns, LongestHold::micros),
            "longest_hold_us": figures(&holds, LongestHold::micros),
            "lost_console_bytes": lost_output,
            "lost_log_bytes": lost_log.bytes,
            "lost_log_lines": lost_log.records,
            "lost_metrics_bytes": self.metrics.file.as_ref().map_or(0, MetricsFile::lost_bytes),
        });
        if counts_cpu_time() {
            totals["longest_turn_cpu_us"] = figures(&turns, LongestHold::cpu_micros);
            totals["longest_hold_cpu_us"] = figures(&holds, LongestHold::cpu_micros);
        }
        totals
    }

    pub(super) fn flush_metrics(&mut self) -> Result<(), Refusal> {
        let totals = self.totals();
        // As in Firecracker, without a file there is nothing to do, and that is no error.
        let Some(file) = &mut self.metrics.file else { return Ok(()) };
        file.write(totals).map_err(|error| {
            self.metrics.missed_lines += 1;
            failed(error)
        })
    }

    pub(super) fn on_metrics_timer(&mut self) {
        // An error means that the timer was read before: no line is due.
        let due = rustix::io::read(&self.metrics.timer, &mut [0; 8]).is_ok();
        if due && let Err(error) = self.flush_metrics() {
            warn!(%error, "metrics are lost");
        }
    }

    pub(super) fn write_last_metrics(&mut self) {
        if self.metrics.file.is_some()
            && let Err(error) = self.flush_metrics()
        {
            warn!(%error, "the last metrics are lost");
        }
    }
}

/// A budget, in its own unit.
fn budget_group(budget: &Budget) -> Value {
    json!({
        "limit": budget.limit(),
        "used": budget.used(),
        "peak": budget.peak(),
        "refusals": budget.refusals(),
    })
}

/// The balloon's counters, and among them Firecracker's names for the bytes given back.
fn balloon_group(counters: &devices::balloon::Counters) -> Value {
    let mut group = json!(counters);
    for (name, given) in [
        ("free_page_report", &counters.free_page_report),
        ("free_page_hint", &counters.free_page_hint),
    ] {
        group[format!("{name}_count")] = json!(given.count);
        group[format!("{name}_freed")] = json!(given.freed);
    }
    group["event_fails"] = json!(counters.bad_buffers);
    group
}
