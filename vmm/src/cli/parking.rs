// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ballast memory park` and `ballast memory unpark`, with their progress.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::compaction::{bar_of, read};
use super::error::CliError;
use super::target::Target;
use super::values::SizeMib;
use crate::api::paging::{PagingStatus, Park, ParkReport, Unpark, UnparkReport};

/// Refresh interval of the progress bar.
const REDRAW: Duration = Duration::from_millis(100);

/// `ballast memory park`.
#[derive(Debug, Args)]
pub(super) struct ParkArgs {
    /// Keep this much memory resident
    #[arg(long, value_name = "SIZE")]
    floor: Option<SizeMib>,
    /// First let the guest give up free memory and page cache, through its balloon: it sleeps in less
    /// memory, and reads files from its disks again when it wakes up
    #[arg(long, conflicts_with = "pause")]
    trim: bool,
    /// Pause the vCPUs first; `ballast resume` resumes them
    #[arg(long)]
    pause: bool,
    /// Cancel the running park operation instead of starting one
    #[arg(long, conflicts_with_all = ["floor", "pause", "trim"])]
    cancel: bool,
    #[command(flatten)]
    target: Target,
}

impl ParkArgs {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), CliError> {
        if self.cancel {
            self.target.ask(Method::DELETE, "/memory/park", None)?;
            return Ok(());
        }
        let floor_mib = self.floor.map_or(0, |size| size.0);
        let wanted = Park { floor_mib, trim: self.trim, pause: self.pause, wait: true };
        let report = with_bar(&self.target, "/memory/park", &json!(wanted))?;
        let status: PagingStatus = read(self.target.get("/memory/paging")?)?;
        Ok(out.write_all(parked(&read(report)?, &status).as_bytes())?)
    }
}

/// `ballast memory unpark`.
#[derive(Debug, Args)]
pub(super) struct UnparkArgs {
    #[command(flatten)]
    target: Target,
}

impl UnparkArgs {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), CliError> {
        let wanted = Unpark { wait: true };
        let report = with_bar(&self.target, "/memory/unpark", &json!(wanted))?;
        Ok(out.write_all(unparked(&read(report)?).as_bytes())?)
    }
}

/// Asks for an operation and draws how far it is until it is answered.
fn with_bar(target: &Target, resource: &str, body: &Value) -> Result<Value, CliError> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if std::io::stderr().is_terminal() {
            scope.spawn(|| draw(target, &over));
        }
        let answer = target.put(resource, body);
        over.store(true, Ordering::Relaxed);
        answer
    })
}

fn draw(target: &Target, over: &AtomicBool) {
    let mut last = None;
    while !over.load(Ordering::Relaxed) {
        let status = target.get("/memory/paging").and_then(read::<PagingStatus>);
        if let Ok(PagingStatus { operation: Some(_), done, planned, .. }) = status {
            last = Some(planned);
            // A bar that cannot be drawn is no reason to stop.
            let _ = std::io::stderr().write_all(bar_of(true, done, planned, "blocks").as_bytes());
        }
        std::thread::sleep(REDRAW);
    }
    if let Some(all) = last {
        let _ = std::io::stderr().write_all(bar_of(false, all, all, "blocks").as_bytes());
    }
}

fn parked(report: &ParkReport, status: &PagingStatus) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let mut text = format!(
        "{} blocks parked in {} ms: {} MiB are absent and take {} MiB of the pool\n",
        report.parked,
        report.took_us / 1000,
        mib(status.absent_bytes),
        mib(status.pool_bytes),
    );
    if let Some(why) = &report.trim_ended {
        text += &format!("{} MiB given up by the guest: {why}\n", mib(report.trimmed_bytes));
    }
    let reasons = [
        ("kept by the floor", report.kept),
        ("in use by a device", report.left_pinned),
        ("in small pages", report.left_small),
        ("busy", report.left_busy),
        ("touched by the guest", report.left_wanted),
        ("incompressible", report.left_incompressible),
    ];
    for (reason, blocks) in reasons.into_iter().filter(|(_, blocks)| *blocks > 0) {
        text += &format!("{blocks} blocks left in place: {reason}\n");
    }
    if let Some(why) = &report.stopped {
        text += &format!("stopped early: {why}\n");
    }
    text
}

fn unparked(report: &UnparkReport) -> String {
    let mut text =
        format!("{} blocks brought back in {} ms\n", report.returned, report.took_us / 1000);
    if report.left > 0 {
        text += &format!("{} blocks still parked: the host is short of memory\n", report.left);
    }
    if report.lost > 0 {
        text += &format!("{} blocks are LOST; see the monitor's log\n", report.lost);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_was_left_and_why() {
        let report = ParkReport { parked: 100, left_busy: 2, took_us: 7_000, ..Default::default() };
        let status = PagingStatus {
            absent_bytes: 200 << 20,
            pool_bytes: 60 << 20,
            ..PagingStatus::default()
        };
        let text = parked(&report, &status);
        assert!(text.contains("100 blocks parked in 7 ms: 200 MiB are absent"), "{text}");
        assert!(text.contains("2 blocks left in place: busy\n"), "{text}");
        let trimmed = ParkReport {
            trimmed_bytes: 90 << 20,
            trim_ended: Some("the guest needs the rest".into()),
            ..report.clone()
        };
        let told = parked(&trimmed, &status);
        assert!(told.contains("90 MiB given up by the guest: the guest needs the rest"), "{told}");
        assert!(!text.contains("given up"), "{text}");
        assert!(!text.contains("incompressible") && !text.contains("stopped"), "{text}");
        let report = ParkReport { stopped: Some("the pool is full".into()), ..report };
        assert!(parked(&report, &status).ends_with("stopped early: the pool is full\n"));
    }
}
