// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A snapshot drawn. Pure: the same snapshot and size give the same screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Gauge, Paragraph, Wrap};

use super::map::{Map, colour};
use super::snapshot::Snapshot;
use crate::api::compaction::CompactStatus;
use crate::api::paging::PagingStatus;
use crate::api::policy::PolicyStatus;
use crate::block_view::BlockKind;

/// Columns of the figures next to the map.
const FIGURES: u16 = 46;
const KEYS: &str = " q quit  c compact  x cancel the pass ";

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, now: &Snapshot) {
    let [body, foot] =
        Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    let [left, right] =
        Layout::horizontal([Constraint::Min(20), Constraint::Length(FIGURES)]).areas(body);
    draw_map(frame, left, now);
    draw_figures(frame, right, now);
    let foot_line = match &now.said {
        Some(said) => Line::from(said.as_str()).bold(),
        None => Line::from(KEYS).dim(),
    };
    frame.render_widget(foot_line, foot);
}

fn draw_map(frame: &mut Frame<'_>, area: Rect, now: &Snapshot) {
    let counts: Vec<(BlockKind, usize)> = BlockKind::ALL
        .into_iter()
        .map(|kind| (kind, now.blocks.iter().filter(|(_, b)| BlockKind::of(b) == kind).count()))
        .filter(|(_, count)| *count > 0)
        .collect();
    let legend_lines = u16::try_from(counts.len()).unwrap_or(u16::MAX);
    let [map, legend] =
        Layout::vertical([Constraint::Min(3), Constraint::Length(legend_lines)]).areas(area);
    let inside = Block::bordered().inner(map);
    let cells = usize::from(inside.width) * usize::from(inside.height);
    let scale = Map(&now.blocks).scale(cells) as u64 * now.blocks.block_bytes;
    let title = format!(" guest memory, one cell is {} ", size(scale));
    frame.render_widget(Block::bordered().title(title), map);
    frame.render_widget(Map(&now.blocks), inside);
    let lines: Vec<Line<'_>> = counts
        .into_iter()
        .map(|(kind, count)| {
            let sample = Span::styled("  ", Style::new().bg(colour(kind)));
            Line::from(vec![sample, Span::raw(format!(" {:<20}{count:>8} blocks", kind.name()))])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), legend);
}

/// One box of figures.
struct Section {
    title: String,
    lines: Vec<String>,
    /// Part and whole of a bar below the lines.
    bar: Option<(u64, u64)>,
}

fn draw_figures(frame: &mut Frame<'_>, area: Rect, now: &Snapshot) {
    let sections = sections(now);
    let height = |section: &Section| {
        Constraint::Length(section.lines.len() as u16 + 2 + u16::from(section.bar.is_some()))
    };
    let places = Layout::vertical(sections.iter().map(height).chain([Constraint::Min(0)]));
    for (section, place) in sections.iter().zip(places.split(area).iter()) {
        let frame_around = Block::bordered().title(format!(" {} ", section.title));
        let inside = frame_around.inner(*place);
        frame.render_widget(frame_around, *place);
        let [text, bar] = Layout::vertical([
            Constraint::Min(0),
            Constraint::Length(u16::from(section.bar.is_some())),
        ])
        .areas(inside);
        let lines: Vec<Line<'_>> = section.lines.iter().map(|line| line.as_str().into()).collect();
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), text);
        if let Some((part, whole)) = section.bar {
            let ratio = (part as f64 / whole.max(1) as f64).clamp(0.0, 1.0);
            let style = Style::new().fg(colour(BlockKind::Huge));
            frame.render_widget(Gauge::default().gauge_style(style).ratio(ratio), bar);
        }
    }
}

/// All figures next to the map.
fn sections(now: &Snapshot) -> Vec<Section> {
    let mut all = Vec::new();
    let title = format!("{} · {} · {} vCPU", now.id, now.state, now.vcpus);
    let mut memory = Section { title, lines: Vec::new(), bar: None };
    match &now.memory {
        None => memory.lines.push("The machine has not been started.".into()),
        Some(m) => {
            let held = size(m.resident_bytes);
            memory.lines.push(format!("{held} of {} in host memory", size(m.total_bytes)));
            memory.lines.push(match m.huge_bytes {
                Some(huge) => {
                    format!("{} % of that in huge pages", percent(huge, m.resident_bytes))
                }
                None => "huge pages: unknown on this kernel".into(),
            });
            memory.lines.extend(now.paging.as_ref().and_then(parked));
            memory.bar = m.huge_bytes.map(|huge| (huge, m.resident_bytes));
        }
    }
    all.push(memory);
    if let (Some(balloon), Some(m)) = (&now.balloon, &now.memory) {
        let mut lines =
            vec![format!("{} of {} MiB asked for", size(m.ballooned_bytes), balloon.target_mib)];
        if let (Some(free), Some(available)) = (balloon.guest_free, balloon.guest_available) {
            lines.push(format!("guest: {} free, {} available", size(free), size(available)));
        }
        let bar = Some((m.ballooned_bytes, m.total_bytes));
        all.push(Section { title: "balloon".into(), lines, bar });
    }
    if let Some(cma) = &now.cma {
        let t = &cma.totals;
        let mut lines = vec![
            format!("{} at {:#x}", size(cma.size_bytes), cma.start),
            format!("{} backed, {} of it huge", size(t.resident_bytes), size(t.huge_bytes)),
            format!("{} ballooned, {} of GPU buffers", size(t.ballooned_bytes), size(t.gpu_bytes)),
        ];
        if let Some(told) = &cma.guest {
            lines.push(format!(
                "guest: {} free, {} lent",
                size(told.free_bytes),
                size(told.lent_bytes)
            ));
            lines.push(format!("{} in contiguous use", size(told.contiguous_bytes)));
        }
        all.push(Section { title: "CMA".into(), lines, bar: Some((t.huge_bytes, cma.size_bytes)) });
    }
    if let Some(gpu) = &now.gpu {
        let count = gpu.images.count + gpu.guest_blobs.count + gpu.host_blobs.count;
        let lines = vec![
            format!("{count} resources, {} of guest memory", size(gpu.backing_bytes)),
            format!("in {} pieces, {} in CMA", gpu.backing_runs, size(gpu.cma_pages * 4096)),
        ];
        all.push(Section { title: "GPU".into(), lines, bar: None });
    }
    if let Some(status) = &now.compaction {
        all.push(compaction(status));
    }
    if let Some(section) = now.policy.as_ref().and_then(policy) {
        all.push(section);
    }
    let host = &now.host;
    let mut lines = Vec::new();
    if let (Some(free), Some(available)) = (host.free, host.available) {
        lines.push(format!("{} free, {} available", size(free), size(available)));
    }
    lines.push(match (host.some, host.full) {
        (Some(some), Some(full)) => format!("waiting for memory: some {some} %, all {full} %"),
        _ => "pressure: unknown, the kernel has no PSI".into(),
    });
    let used = |total: u64| total.saturating_sub(host.available.unwrap_or(0));
    all.push(Section {
        title: "host".into(),
        lines,
        bar: host.total.map(|total| (used(total), total)),
    });
    all
}

/// Parked memory, once there was any.
fn parked(status: &PagingStatus) -> Option<String> {
    let active = status.active && (status.absent_bytes > 0 || status.counters.stored > 0);
    active.then(|| {
        let (away, pool) = (size(status.absent_bytes), size(status.pool_bytes));
        format!("{away} parked, in {pool} of the pool")
    })
}

/// The policy, unless it is off.
fn policy(status: &PolicyStatus) -> Option<Section> {
    status.active.then(|| {
        let preset = serde_json::json!(status.policy.preset);
        let title = format!(
            "policy {}: host {}, guest {}",
            preset.as_str().unwrap_or_default(),
            status.host_level,
            status.guest_state
        );
        let mut lines = vec![format!(
            "evicting costs {} of {} \u{2030} CPU",
            status.cpu_permille, status.cpu_limit_permille
        )];
        if let Some(last) = status.decisions.last() {
            lines.push(last.what.clone());
            lines.push(last.reason.clone());
        }
        Section { title, lines, bar: None }
    })
}

fn compaction(status: &CompactStatus) -> Section {
    let title = "compaction".to_owned();
    if status.running {
        let lines = vec![format!("{} of {} steps", status.done, status.planned)];
        return Section { title, lines, bar: Some((status.done, status.planned)) };
    }
    let lines = match &status.last {
        None => vec!["no pass so far".to_owned()],
        Some(last) => {
            let share =
                |t: &crate::api::compaction::MemoryTotals| percent(t.huge_bytes, t.resident_bytes);
            vec![
                format!("last: {} steps in {} ms", last.planned, last.took_us / 1000),
                format!("huge: {} %, then {} %", share(&last.before), share(&last.after)),
            ]
        }
    };
    Section { title, lines, bar: None }
}

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(0)
}

/// Bytes in MiB, or in GiB from 10 of them on.
fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mib if mib >= 10 << 10 => format!("{} GiB", mib >> 10),
        mib => format!("{mib} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::snapshot::Balloon;
    use super::*;
    use crate::api::cma::{CmaStatus, CmaUse};
    use crate::api::compaction::MemoryTotals;
    use crate::api::gpu::GpuStatus;
    use crate::api::memory::MemoryStatus;
    use crate::api::paging::PagingCounters;
    use crate::api::policy::PolicyDecision;
    use crate::block_view::{BlockRun, BlockRuns};
    use crate::config::{PolicyConfig, PolicyPreset};
    use crate::pressure::HostMemory;

    fn snapshot() -> Snapshot {
        let run = |first, blocks, present, huge| BlockRun {
            first,
            blocks,
            present,
            huge,
            ..BlockRun::default()
        };
        let runs = vec![run(0, 100, 512, true), run(100, 28, 40, false)];
        Snapshot {
            id: "tv".into(),
            state: "Running".into(),
            vcpus: 2,
            memory: Some(MemoryStatus {
                backing: Default::default(),
                cma_bytes: 0,
                total_bytes: 256 << 20,
                resident_bytes: 200 << 20,
                huge_bytes: Some(150 << 20),
                ballooned_bytes: 16 << 20,
            }),
            blocks: BlockRuns { block_bytes: 2 << 20, runs },
            balloon: Some(Balloon {
                target_mib: 16,
                guest_free: Some(30 << 20),
                guest_available: Some(40 << 20),
            }),
            cma: Some(CmaStatus {
                start: 0x1800_0000,
                size_bytes: 64 << 20,
                totals: MemoryTotals { resident_bytes: 8 << 20, ..MemoryTotals::default() },
                guest: Some(CmaUse {
                    total_bytes: 64 << 20,
                    free_bytes: 40 << 20,
                    lent_bytes: 8 << 20,
                    contiguous_bytes: 16 << 20,
                    age_ms: 500,
                }),
            }),
            gpu: Some(GpuStatus::default()),
            compaction: Some(CompactStatus { running: true, done: 3, planned: 12, last: None }),
            paging: Some(PagingStatus {
                active: true,
                absent_bytes: 90 << 20,
                pool_bytes: 30 << 20,
                counters: PagingCounters { stored: 45, ..Default::default() },
                ..Default::default()
            }),
            policy: Some(PolicyStatus {
                policy: PolicyConfig { preset: PolicyPreset::Dense, ..Default::default() },
                active: true,
                host_level: "tight".into(),
                guest_state: "easy".into(),
                cpu_permille: 12,
                cpu_limit_permille: 100,
                decisions: vec![PolicyDecision {
                    what: "balloon to 64 MiB".into(),
                    reason: "the guest has 80 MiB free".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            host: HostMemory {
                total: Some(20 << 30),
                free: Some(11 << 30),
                available: Some(12 << 30),
                some: Some(1.5),
                full: Some(0.25),
            },
            said: None,
        }
    }

    /// The screen as lines of text.
    fn screen(now: &Snapshot, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, now)).unwrap();
        let buffer = terminal.backend().buffer();
        (0..height)
            .map(|y| (0..width).filter_map(|x| buffer.cell((x, y))).map(|c| c.symbol()).collect())
            .collect()
    }

    #[test]
    fn everything_is_on_the_screen() {
        let text = screen(&snapshot(), 120, 44).join("\n");
        for words in [
            "tv · Running · 2 vCPU",
            "200 MiB of 256 MiB in host memory",
            "75 % of that in huge pages",
            "16 MiB of 16 MiB asked for",
            "guest: 30 MiB free, 40 MiB available",
            "64 MiB at 0x18000000",
            "8 MiB backed",
            "guest: 40 MiB free, 8 MiB lent",
            "16 MiB in contiguous use",
            "0 resources",
            "3 of 12 steps",
            "90 MiB parked, in 30 MiB of the pool",
            "policy dense: host tight, guest easy",
            "evicting costs 12 of 100",
            "balloon to 64 MiB",
            "the guest has 80 MiB free",
            "11 GiB free, 12 GiB available",
            "some 1.5 %, all 0.25 %",
            "one cell is 2 MiB",
            "huge page",
            "100 blocks",
            "small pages, sparse",
            "28 blocks",
            "q quit",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }

    #[test]
    fn what_there_is_not_is_left_out_and_what_was_refused_is_said() {
        let now = Snapshot {
            memory: None,
            balloon: None,
            cma: None,
            gpu: None,
            compaction: None,
            paging: None,
            policy: None,
            host: HostMemory::default(),
            said: Some("A compaction pass is running.".into()),
            ..snapshot()
        };
        let text = screen(&now, 100, 30).join("\n");
        assert!(text.contains("not been started"), "{text}");
        assert!(text.contains("the kernel has no PSI"), "{text}");
        assert!(text.contains("A compaction pass is running."), "{text}");
        for absent in ["balloon", "CMA", "GPU", "policy", "q quit"] {
            assert!(!text.contains(absent), "{absent} is in\n{text}");
        }
    }

    /// Too small a terminal shows less, and breaks nothing.
    #[test]
    fn any_size_of_terminal() {
        for (width, height) in [(1, 1), (10, 3), (47, 5), (80, 24), (300, 100)] {
            screen(&snapshot(), width, height);
            screen(&Snapshot::default(), width, height);
        }
    }
}
