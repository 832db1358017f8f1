// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on counters; all counters, collected.

use devices::virtio::{LongestHold, counts_cpu_time};
use mm::budget::Budget;
use serde_json::{Map, Value, json};
use tracing::warn;

use super::{Controller, failed};
use crate::api::metrics::{MetricsAction, MetricsReply};
use crate::api::{Refusal, Reply};
use crate::config::MetricsConfig;
use crate::metrics;
use crate::vcpu::{ExitKind, ServedTime};

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
        if self.metrics.has_file() {
            return Err(Refusal::Failed("The metrics file is set already.".into()));
        }
        self.metrics.open(config.clone(), &self.id).map_err(failed)?;
        self.config.metrics = Some(config);
        Ok(())
    }

    /// The first line, and the timer of the others: when the machine has started, as in
    /// Firecracker.
    pub(super) fn start_metrics(&mut self) -> Result<(), Refusal> {
        self.metrics.note_start();
        if !self.metrics.has_file() {
            return Ok(());
        }
        self.flush_metrics()?;
        self.metrics.start_timer().map_err(failed)
    }

    /// All counters since the start, by group.
    fn totals(&self) -> Value {
        let mut groups = self.metrics.groups();
        groups.insert("monitor".into(), self.monitor_totals());
        let lost = self.log.lost();
        groups.insert(
            "logger".into(),
            json!({
                "missed_log_count": lost.records,
                "missed_metrics_count": self.metrics.missed_lines(),
            }),
        );
        let connections = std::iter::once(self.metrics.connections());
        let machine = self.vm.iter().flat_map(|vm| vm.budgets());
        let budgets: Map<String, Value> =
            connections.chain(machine).map(|b| (b.name().to_owned(), budget_group(b))).collect();
        groups.insert("budgets".into(), budgets.into());
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

    /// How long the monitor was blocked, in microseconds, and how much output it lost.
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
            "lost_metrics_bytes": self.metrics.lost_bytes(),
        });
        if counts_cpu_time() {
            totals["longest_turn_cpu_us"] = figures(&turns, LongestHold::cpu_micros);
            totals["longest_hold_cpu_us"] = figures(&holds, LongestHold::cpu_micros);
        }
        totals
    }

    pub(super) fn flush_metrics(&mut self) -> Result<(), Refusal> {
        if !self.metrics.has_file() {
            return Ok(());
        }
        let totals = self.totals();
        self.metrics.write(totals).map_err(failed)
    }

    pub(super) fn on_metrics_timer(&mut self) {
        if self.metrics.take_due()
            && let Err(error) = self.flush_metrics()
        {
            warn!(%error, "cannot write metrics");
        }
    }

    pub(super) fn write_last_metrics(&mut self) {
        if self.metrics.has_file()
            && let Err(error) = self.flush_metrics()
        {
            warn!(%error, "the last cannot write metrics");
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

/// The balloon's counters, with Firecracker's names for the bytes returned.
fn balloon_group(counters: &devices::balloon::BalloonCounters) -> Value {
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
