// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! GPU buffers in a guest: fragmentation of its memory, with our kernel and with Debian's, which
//! lacks our patches; the rate of page migrations; and their cost for a drawing client.

use harness::figures::{Figure, Goal, median};
use harness::fragments::{Fragments, ORDERS};
use harness::guest::Guest;
use harness::host::PAGE;
use harness::monitor::{Program, Spec};
use harness::{Result, check, check_eq};

use crate::{Bed, patiently};

/// The guest's memory, and the share of it that is filled with buffers.
const MEMORY_MIB: u64 = 768;
const FILLED_PERCENT: u64 = 60;
/// How much of free memory can be allocated in one piece.
const WHOLE_PERCENT: f64 = 95.0;
/// Pages that a command is to move, on average.
const PAGES_A_COMMAND: f64 = 16.0;
/// How long the compaction is to take.
const COMPACTION_S: f64 = 1.0;
/// What the client draws on.
const SCREEN: (u32, u32) = (1280, 720);
/// How often all of memory is evacuated while it draws.
const EVACUATED_TIMES: u32 = 2;

/// Measures everything.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let Some(program) = bed.programs.first() else { return Ok(Vec::new()) };
    let mut figures = Vec::new();
    let ours = Spec::new(&bed.payload, MEMORY_MIB);
    let debians = Spec::debian_display(&bed.payload, MEMORY_MIB);
    figures.extend(patiently(|| fragments(bed, program, "ballast", &ours))?);
    figures.extend(patiently(|| fragments(bed, program, "debian", &debians))?);
    figures.extend(patiently(|| rates(bed, program))?);
    figures.extend(patiently(|| pauses(bed, program))?);
    Ok(figures)
}

fn boot(bed: &Bed, program: &Program, cpus: u32) -> Result<Guest> {
    let spec = Spec { cpus, ..Spec::new(&bed.payload, MEMORY_MIB) };
    Guest::boot(program, spec.with_gpu(SCREEN.0, SCREEN.1, 1), &bed.logs)
}

/// The median over all rounds of one number of each.
fn of<T>(rounds: &[T], number: impl Fn(&T) -> f64) -> f64 {
    median(&rounds.iter().map(number).collect::<Vec<f64>>())
}

/// Every other buffer freed, one compaction: what is free, and in what pieces.
fn fragments(bed: &Bed, program: &Program, name: &str, spec: &Spec) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut rounds = Vec::new();
    for round in 1..=bed.rounds {
        let spec = spec.clone().with_gpu(SCREEN.0, SCREEN.1, 1);
        let mut guest = Guest::boot(program, spec, &bed.logs)?;
        let fragments = Fragments::measure(&mut guest, FILLED_PERCENT)?;
        println!("round {round}/{}: {name}: {fragments}", bed.rounds);
        rounds.push(fragments);
        guest.power_off()?;
    }
    let goal = |goal: Goal| if name == "ballast" { goal } else { Goal::None };
    let mut add = |what: &str, value: f64, unit: &'static str, wanted: Goal| {
        let name = format!("gpu.{name}.{what}");
        figures.push(Figure { name, value, unit, goal: goal(wanted) });
    };
    add("blocks-before", of(&rounds, |r| r.blocks_before as f64), "blocks", Goal::None);
    add("blocks-after", of(&rounds, |r| r.blocks as f64), "blocks", Goal::None);
    let whole = Goal::AtLeast(WHOLE_PERCENT);
    add("blocks-of-free", of(&rounds, Fragments::blocks_percent), "%", whole);
    if name == "ballast" {
        let batched = Goal::AtLeast(PAGES_A_COMMAND);
        add("pages-a-command", of(&rounds, Fragments::pages_a_command), "pages", batched);
    }
    add("pages-a-block-gained", of(&rounds, Fragments::pages_a_block), "pages", Goal::None);
    add("compaction", of(&rounds, |r| r.took_ns as f64 / 1e9), "s", Goal::AtMost(COMPACTION_S));
    add("failed-migrations", of(&rounds, |r| r.failed as f64), "pages", Goal::None);
    add("failed-share", of(&rounds, Fragments::failed_percent), "%", Goal::AtMost(1.0));
    for (n, order) in ORDERS.iter().enumerate() {
        let share = of(&rounds, |r| r.obtained[n].percent());
        add(&format!("order-{order}-of-free"), share, "%", whole);
    }
    Ok(figures)
}

/// Pages that move in a compaction, by the guest's clock, beside a copy in the guest.
fn rates(bed: &Bed, program: &Program) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut rounds = Vec::new();
    for round in 1..=bed.rounds {
        let mut guest = boot(bed, program, 1)?;
        let agent = &mut guest.agent;
        let copied = agent.figures("copy 16M")?;
        agent.command("gpu-fill f 256M dumb")?;
        agent.command("gpu-punch f")?;
        let before = agent.vmstat(["movable_migrate_gpu"])?[0];
        let took = agent.figures("write /proc/sys/vm/compact_memory 1")?["ns"];
        let moved = agent.vmstat(["movable_migrate_gpu"])?[0] - before;
        check!(moved > 1000, "only {moved} pages moved");
        agent.verify("gpu-verify f")?;
        let pages = moved as f64 * 1e9 / took as f64;
        let memcpy = copied["bytes"] as f64 * 1e9 / copied["ns"] as f64;
        println!(
            "round {round}/{}: {moved} pages in {:.3} s, {pages:.0} a second; memcpy {:.0} MiB/s",
            bed.rounds,
            took as f64 / 1e9,
            memcpy / f64::from(1 << 20)
        );
        rounds.push((pages, pages * PAGE as f64 / memcpy * 100.0));
        guest.power_off()?;
    }
    let mut add = |what: &str, value: f64, unit: &'static str| {
        let name = format!("gpu.ballast.{what}");
        figures.push(Figure { name, value, unit, goal: Goal::None });
    };
    add("migration-rate", of(&rounds, |r| r.0), "pages/s");
    add("migration-of-memcpy", of(&rounds, |r| r.1), "%");
    Ok(figures)
}

/// How long the client takes to check and paint a page: one that is where it was, and one that has
/// been moved, or is being moved at that moment.
fn pauses(bed: &Bed, program: &Program) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut rounds = Vec::new();
    for round in 1..=bed.rounds {
        let mut guest = boot(bed, program, 2)?;
        guest.agent.command("gpu-fill f 160M dumb")?;
        guest.agent.command("gpu-punch f")?;
        guest.agent.command("screen-start 0")?;
        for _ in 0..EVACUATED_TIMES {
            guest.agent.command("write /proc/sys/vm/compact_memory 1")?;
            guest.evacuate_everything()?;
        }
        let client = guest.agent.figures("screen-stop")?;
        println!("round {round}/{}: client {client:?}", bed.rounds);
        check_eq!(client["damaged"], 0);
        check!(client["moved"] > 0, "no page of the client moved: {client:?}");
        rounds.push(client);
        guest.power_off()?;
    }
    for (what, key) in [
        ("page-p50", "p50_ns"),
        ("moved-page-p50", "moved_p50_ns"),
        ("moved-page-p99", "moved_p99_ns"),
        ("longest-page", "longest_ns"),
    ] {
        let value = of(&rounds, |client| client[key] as f64 / 1e3);
        let name = format!("gpu.ballast.client-{what}");
        figures.push(Figure { name, value, unit: "us", goal: Goal::None });
    }
    Ok(figures)
}
