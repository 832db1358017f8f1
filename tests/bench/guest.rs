// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Allocations that still succeed in the guest, with our kernel and with Debian's: kernel memory
//! with half the memory in the balloon, and free CMA memory when a GPU buffer allocation first
//! fails. With our kernel and, if it is given, an unpatched one: contiguous memory next to zram, in a
//! guest without memory to spare.

use std::time::{Duration, Instant};

use harness::Result;
use harness::figures::{Figure, Goal, median};
use harness::fragments::{ORDERS, keep_little_free};
use harness::guest::{CMA, Guest};
use harness::host::{PAGE, parse_buddyinfo};
use harness::monitor::{Program, Spec};
use serde_json::json;

use crate::{Bed, STOCK_KERNEL, mib, patiently};

const MEMORY_MIB: u64 = 768;
const CMA_MIB: u64 = 112;
/// Of free memory outside CMA, which kernel memory cannot come from.
const WHOLE_PERCENT: f64 = 95.0;
/// CMA that may be left when a buffer is refused.
const LEFT_MIB: f64 = 2.0;
const BLOCK_ORDER: usize = 9;
/// What is written to zram, what programs leave free beside it, and the contiguous memory that is asked
/// for then.
const ZRAM_MIB: u64 = 256;
const SPARE_MIB: u64 = 30;
const CONTIGUOUS_MIB: u64 = 64;
const FILL_LIMIT: Duration = Duration::from_secs(300);

/// Measures everything.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let Some(program) = bed.programs.first() else { return Ok(Vec::new()) };
    let mut figures = Vec::new();
    let cma = json!({ "cma_mib": CMA_MIB });
    for (name, spec) in [
        ("ballast", Spec::new(&bed.payload, MEMORY_MIB)),
        ("debian", Spec::debian_display(&bed.payload, MEMORY_MIB)),
    ] {
        let mut spec = spec.with_gpu(1280, 720, 1);
        spec.more.insert("memory".into(), cma.clone());
        figures.extend(patiently(|| balloon(bed, program, name, &spec))?);
        figures.extend(patiently(|| refusal(bed, program, name, &spec))?);
    }
    let stock = bed.payload.path(STOCK_KERNEL);
    for (name, kernel) in [("ballast", None), ("stock", Some(stock))] {
        let mut spec = Spec::new(&bed.payload, MEMORY_MIB);
        spec.more.insert("memory".into(), cma.clone());
        match kernel {
            Some(kernel) if !kernel.is_file() => continue,
            Some(kernel) => spec.kernel = kernel,
            None => {}
        }
        figures.extend(patiently(|| contiguous(bed, program, name, &spec))?);
    }
    Ok(figures)
}

/// Contiguous memory is asked for while zram holds much of the region and little is free: whether it
/// is given, and how many programs were killed for it.
fn contiguous(bed: &Bed, program: &Program, name: &str, spec: &Spec) -> Result<Vec<Figure>> {
    let mut rounds = Vec::new();
    for round in 1..=bed.rounds {
        let mut guest = Guest::boot(program, spec.clone(), &bed.logs)?;
        guest.agent.command("program-start /init bystander 1M")?;
        guest.agent.command(&format!("zram-fill 0 {ZRAM_MIB}M"))?;
        let free = |guest: &mut Guest| -> Result<u64> {
            Ok(guest.agent.vmstat(["nr_free_pages"])?[0] * PAGE / (1 << 20))
        };
        let rest = free(&mut guest)?.saturating_sub(SPARE_MIB);
        guest.agent.command(&format!("fill programs {rest}M"))?;
        let (spare, cma) = (free(&mut guest)?, mib(cma_free(&mut guest)? * PAGE));
        let pages = (CONTIGUOUS_MIB << 20) / PAGE;
        let began = Instant::now();
        guest.agent.command(&format!("write {CMA}/alloc {pages}")).ok();
        let took = began.elapsed();
        let used = guest.agent.command(&format!("read {CMA}/used"))?.join("");
        let given = used.trim() == pages.to_string();
        let [killed] = guest.agent.vmstat(["oom_kill"])?;
        println!(
            "round {round}/{}: {name}: {spare} MiB free, {cma:.0} of them in the region; \
             {CONTIGUOUS_MIB} MiB in one piece: {}, after {:.1} s; {killed} programs killed",
            bed.rounds,
            if given { "given" } else { "refused" },
            took.as_secs_f64(),
        );
        if killed == 0 {
            guest.agent.verify("verify programs")?;
        }
        guest.agent.verify("zram-verify 0")?;
        rounds.push([f64::from(u8::from(given)), killed as f64]);
        guest.power_off()?;
    }
    let figure = |n: usize, what: &str, unit, goal| Figure {
        name: format!("guest.{name}.{what}"),
        value: median(&rounds.iter().map(|round| round[n]).collect::<Vec<_>>()),
        unit,
        goal,
    };
    Ok(vec![
        figure(0, "contiguous-beside-zram", "given", Goal::None),
        figure(1, "killed-for-it", "programs", goal(name, Goal::AtMost(0.0))),
    ])
}

fn goal(name: &str, goal: Goal) -> Goal {
    if name == "ballast" { goal } else { Goal::None }
}

fn cma_free(guest: &mut Guest) -> Result<u64> {
    Ok(guest.agent.vmstat(["nr_free_cma"])?[0])
}

/// Half of memory in the balloon: free memory outside CMA, and the sizes in which it can be
/// allocated.
fn balloon(bed: &Bed, program: &Program, name: &str, spec: &Spec) -> Result<Vec<Figure>> {
    let mut rounds = Vec::new();
    for round in 1..=bed.rounds {
        let mut guest = Guest::boot(program, spec.clone(), &bed.logs)?;
        keep_little_free(&mut guest)?;
        guest.balloon_to(MEMORY_MIB / 2)?;
        let buddies = guest.agent.command("read /proc/buddyinfo")?.join("\n");
        let blocks: u64 = parse_buddyinfo(&buddies)
            .iter()
            .enumerate()
            .skip(BLOCK_ORDER)
            .map(|(order, count)| count << (order - BLOCK_ORDER))
            .sum();
        let cma_blocks = cma_free(&mut guest)? >> BLOCK_ORDER;
        let mut shares = Vec::new();
        for order in ORDERS.iter().rev() {
            let [free] = guest.agent.vmstat(["nr_free_pages"])?;
            let free = free.saturating_sub(cma_free(&mut guest)?) * PAGE;
            let bytes = guest.agent.figures(&format!("order-fill {order}"))?["bytes"];
            guest.agent.command("order-free")?;
            shares.insert(0, bytes as f64 * 100.0 / free.max(1) as f64);
        }
        let outside = blocks.saturating_sub(cma_blocks);
        println!(
            "round {round}/{}: {name}: {outside} free blocks outside CMA, {cma_blocks} in it; \
             orders {ORDERS:?}: {shares:.1?} % of free memory outside CMA",
            bed.rounds
        );
        rounds.push((outside as f64, shares));
        guest.power_off()?;
    }
    let mut figures = vec![Figure {
        name: format!("guest.{name}.blocks-outside-cma"),
        value: median(&rounds.iter().map(|(blocks, _)| *blocks).collect::<Vec<_>>()),
        unit: "blocks",
        goal: Goal::None,
    }];
    for (n, order) in ORDERS.iter().enumerate() {
        figures.push(Figure {
            name: format!("guest.{name}.order-{order}-beside-balloon"),
            value: median(&rounds.iter().map(|(_, shares)| shares[n]).collect::<Vec<_>>()),
            unit: "%",
            goal: goal(name, Goal::AtLeast(WHOLE_PERCENT)),
        });
    }
    Ok(figures)
}

/// Buffers until one is refused: how much of CMA is free then.
fn refusal(bed: &Bed, program: &Program, name: &str, spec: &Spec) -> Result<Vec<Figure>> {
    let mut rounds = Vec::new();
    for round in 1..=bed.rounds {
        let mut guest = Guest::boot(program, spec.clone(), &bed.logs)?;
        guest.agent.command("program-start /init bystander 1M")?;
        let fill = format!("gpu-fill all {MEMORY_MIB}M dumb");
        let filled = guest.agent.figures_within(&fill, FILL_LIMIT)?;
        let left = mib(cma_free(&mut guest)? * PAGE);
        println!("round {round}/{}: {name}: {filled:?}; {left:.2} MiB of CMA free", bed.rounds);
        rounds.push(left);
        guest.agent.command("gpu-punch all")?;
        guest.power_off()?;
    }
    Ok(vec![Figure {
        name: format!("guest.{name}.cma-free-at-refusal"),
        value: median(&rounds),
        unit: "MiB",
        goal: goal(name, Goal::AtMost(LEFT_MIB)),
    }])
}
