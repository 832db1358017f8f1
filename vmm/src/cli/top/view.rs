// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A snapshot drawn. Pure: the same snapshot and size give the same screen.

use mm::units::SaturatingInto;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Gauge, Paragraph, Wrap};

use super::map::{Map, colour};
use super::sections::{Section, sections, size};
use super::snapshot::TopSnapshot;
use crate::block_view::BlockKind;

/// Columns of the figures next to the map.
const FIGURES: u16 = 46;
const KEYS: &str = " q quit  c compact  x cancel the pass ";

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, now: &TopSnapshot) {
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

fn draw_map(frame: &mut Frame<'_>, area: Rect, now: &TopSnapshot) {
    let counts: Vec<(BlockKind, usize)> = BlockKind::ALL
        .into_iter()
        .map(|kind| (kind, now.blocks.iter().filter(|(_, b)| BlockKind::of(b) == kind).count()))
        .filter(|(_, count)| *count > 0)
        .collect();
    let legend_lines = counts.len().saturating_u16();
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

fn draw_figures(frame: &mut Frame<'_>, area: Rect, now: &TopSnapshot) {
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

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::snapshot::BalloonFigures;
    use super::*;
    use crate::api::cma::{CmaStatus, CmaUse};
    use crate::api::compaction::{CompactStatus, MemoryTotals};
    use crate::api::gpu::GpuStatus;
    use crate::api::memory::MemoryStatus;
    use crate::api::paging::{PagingCounters, PagingStatus};
    use crate::api::policy::{PolicyDecision, PolicyStatus};
    use crate::block_view::{BlockRun, BlockRuns};
    use crate::config::{PolicyConfig, PolicyPreset};
    use crate::host::memory_figures::HostFigures;

    fn snapshot() -> TopSnapshot {
        let run = |first, blocks, present, huge| BlockRun {
            first,
            blocks,
            present,
            huge,
            ..BlockRun::default()
        };
        let runs = vec![run(0, 100, 512, true), run(100, 28, 40, false)];
        TopSnapshot {
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
            balloon: Some(BalloonFigures {
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
            host: HostFigures {
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
    fn screen(now: &TopSnapshot, width: u16, height: u16) -> Vec<String> {
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
        let now = TopSnapshot {
            memory: None,
            balloon: None,
            cma: None,
            gpu: None,
            compaction: None,
            paging: None,
            policy: None,
            host: HostFigures::default(),
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
            screen(&TopSnapshot::default(), width, height);
        }
    }
}
