// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ballast memory compact` with its progress, and `ballast memory map` with its pictures.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde::de::DeserializeOwned;

use super::client::ClientError;
use super::error::CliError;
use super::target::Target;
use super::values::{SizeMib, address};
use crate::api::compaction::{Compact, CompactReport, CompactStatus, Scope};
use crate::block_view::{BlockRuns, to_png, to_svg, to_terminal};

/// Refresh interval of the progress bar.
const REDRAW: Duration = Duration::from_millis(100);
const BAR: usize = 40;

/// `ballast memory compact`.
#[derive(Debug, Args)]
pub(super) struct CompactArgs {
    /// Only the CMA region
    #[arg(long, conflicts_with_all = ["start", "blocks"])]
    cma: bool,
    /// First guest-physical address of the range, a multiple of 2 MiB
    #[arg(long, value_parser = address, requires = "blocks")]
    start: Option<u64>,
    /// Number of 2 MiB blocks in the range
    #[arg(long, requires = "start")]
    blocks: Option<u64>,
    /// Copy at most this many MiB
    #[arg(long, value_name = "SIZE")]
    budget: Option<SizeMib>,
    /// Take at most this many milliseconds
    #[arg(long, value_name = "MS")]
    budget_ms: Option<u64>,
    /// Do not ask the guest to evacuate blocks
    #[arg(long)]
    no_evacuate: bool,
    /// Make every block in the range huge and present, ready for contiguous allocation; needs
    /// --cma, or --start and --blocks
    #[arg(long)]
    back: bool,
    /// Cancel the running pass instead of starting one
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    target: Target,
}

impl CompactArgs {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), CliError> {
        if self.cancel {
            self.target.ask(Method::DELETE, "/memory/compact", None)?;
            return Ok(());
        }
        let scope = match (self.cma, self.start) {
            (true, _) => Scope::Cma,
            (_, Some(_)) => Scope::Range,
            _ => Scope::All,
        };
        let wanted = Compact {
            scope,
            start: self.start,
            blocks: self.blocks,
            wait: false,
            evacuate: !self.no_evacuate,
            back: self.back,
            budget_mib: self.budget.map(|size| size.0),
            budget_ms: self.budget_ms,
        };
        let body = serde_json::to_value(&wanted).map_err(|e| CliError::Usage(e.to_string()))?;
        self.target.put("/memory/compact", &body)?;
        let bar = std::io::stderr().is_terminal();
        loop {
            let status: CompactStatus = read(self.target.get("/memory/compact")?)?;
            if bar {
                draw_bar(&status);
            }
            if !status.running {
                return match status.last {
                    Some(report) => Ok(out.write_all(summary(&report).as_bytes())?),
                    None => Err(CliError::Usage("the pass failed; see the monitor's log".into())),
                };
            }
            std::thread::sleep(REDRAW);
        }
    }
}

fn draw_bar(status: &CompactStatus) {
    // A bar that cannot be drawn is no reason to stop.
    let _ = std::io::stderr().write_all(bar(status).as_bytes());
}

/// The bar, drawn over the one before; its line ends with the pass.
fn bar(status: &CompactStatus) -> String {
    let (done, planned) = match (status.running, &status.last) {
        (false, Some(last)) => (last.planned, last.planned),
        _ => (status.done, status.planned),
    };
    bar_of(status.running, done, planned, "steps")
}

/// `done` of `planned`, drawn over the bar before; its line ends with the work.
pub(super) fn bar_of(running: bool, done: u64, planned: u64, unit: &str) -> String {
    let share = done.saturating_mul(BAR as u64) / planned.max(1);
    let filled = if running { share.min(BAR as u64) as usize } else { BAR };
    format!(
        "\r[{}{}] {done}/{planned} {unit} {}",
        "#".repeat(filled),
        " ".repeat(BAR - filled),
        if running { "" } else { "\n" },
    )
}

/// The report in a few lines.
fn summary(report: &CompactReport) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let percent = |part: u64, of: u64| part.saturating_mul(100).checked_div(of).unwrap_or(100);
    let line = |name: &str, t: &crate::api::compaction::MemoryTotals| {
        format!(
            "{name:<8} {:>7} MiB resident, {:>3} % of it in huge pages, {} MiB wasted\n",
            mib(t.resident_bytes),
            percent(t.huge_bytes, t.resident_bytes),
            mib(t.wasted_bytes),
        )
    };
    let steps = |name: &str, t: &crate::api::compaction::StepCounts| {
        format!(
            "{name:<9} {:>6} done ({} MiB), {} moot, {} busy, {} refused\n",
            t.done,
            mib(t.bytes),
            t.moot,
            t.busy,
            t.refused
        )
    };
    format!(
        "{}{}{}{}{}{}{}{} steps, {} left out for the budget, {} ms\n",
        line("before", &report.before),
        line("after", &report.after),
        steps("discard", &report.discard),
        steps("collapse", &report.collapse),
        steps("evacuate", &report.evacuate),
        steps("gather", &report.gather),
        steps("back", &report.back),
        report.planned,
        report.left_out,
        report.took_us / 1000,
    )
}

/// `ballast memory map`.
#[derive(Debug, Args)]
pub(super) struct MapArgs {
    /// Write a PNG picture to this file
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Write an SVG picture to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Title of the picture
    #[arg(long, default_value = "guest memory, 2 MiB blocks")]
    title: String,
    #[command(flatten)]
    target: Target,
}

impl MapArgs {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), CliError> {
        let map: BlockRuns = read(self.target.get("/memory/blocks")?)?;
        let usage = |error: &dyn std::fmt::Display| CliError::Usage(error.to_string());
        let write = |path: &PathBuf, bytes: &[u8]| {
            let named = |error| usage(&format!("{}: {error}", path.display()));
            std::fs::write(path, bytes).map_err(named)
        };
        if let Some(path) = &self.png {
            write(path, &to_png(&map, &self.title).map_err(|error| usage(&error))?)?;
        }
        if let Some(path) = &self.svg {
            write(path, to_svg(&map, &self.title).as_bytes())?;
        }
        if self.png.is_none() && self.svg.is_none() {
            let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            out.write_all(to_terminal(&map, colours).as_bytes())?;
        }
        Ok(())
    }
}

pub(super) fn read<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, CliError> {
    let broken = |error: serde_json::Error| {
        ClientError::Refused(format!("unexpected response from the monitor: {error}"))
    };
    Ok(serde_json::from_value(value).map_err(broken)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::compaction::{MemoryTotals, PassEnd, StepCounts};

    #[test]
    fn the_bar_grows_and_ends() {
        let mut status = CompactStatus { running: true, done: 5, planned: 20, last: None };
        let filled = |status: &CompactStatus| bar(status).matches('#').count();
        assert_eq!(filled(&status), BAR / 4);
        assert!(bar(&status).ends_with("5/20 steps "));
        // Another stage was planned.
        (status.done, status.planned) = (20, 25);
        assert_eq!(filled(&status), BAR * 4 / 5);
        (status.running, status.done, status.planned) = (false, 0, 0);
        assert_eq!(filled(&status), BAR);
        assert!(bar(&status).ends_with('\n'));
    }

    #[test]
    fn a_report_in_a_few_lines() {
        let before =
            MemoryTotals { resident_bytes: 100 << 20, huge_bytes: 5 << 20, ..Default::default() };
        let report = CompactReport {
            before,
            after: MemoryTotals { huge_bytes: 100 << 20, ..before },
            discard: StepCounts::default(),
            collapse: StepCounts { done: 47, bytes: 94 << 20, ..Default::default() },
            evacuate: StepCounts::default(),
            back: StepCounts::default(),
            gather: StepCounts::default(),
            planned: 47,
            left_out: 0,
            stages: Vec::new(),
            took_us: 12_345,
            end: PassEnd::Finished,
        };
        let text = summary(&report);
        assert!(text.contains("100 MiB resident,   5 % of it"), "{text}");
        assert!(text.contains("47 done (94 MiB)"), "{text}");
        assert!(text.ends_with("12 ms\n"), "{text}");
    }
}
