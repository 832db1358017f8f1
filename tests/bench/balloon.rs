// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much memory returns to the host, and how fast: free memory, a fragmented guest, free page
//! reporting. All monitors run the same guest with our kernel. Ballast is measured with whole
//! blocks and without them: then the guest's driver uses single pages like the stock driver, as
//! with the peers. With an unpatched kernel given, Ballast is measured with that too.

use std::time::{Duration, Instant};

use harness::figures::{Figure, Goal, median};
use harness::guest::{BALLOON_LIMIT, Guest};
use harness::host;
use harness::monitor::{Balloon, Kind, Program, Spec, pause};
use harness::{Error, Result, bare};

use crate::{Bed, GUEST_MAPPING, STOCK_KERNEL, mib, patiently};

/// The guest's memory, and what is asked for.
const MEMORY_MIB: u64 = 1024;
const BALLOON_MIB: u64 = 512;
/// The guest's memory for rates, and what is asked for: blocks are so quick that little of them
/// cannot be timed from outside, and pages so slow that little of them will do. Up to an eighth of
/// memory rests in the lists of each CPU just after it was freed: that is not asked for.
const RATE_MEMORY_MIB: u64 = 4096;
const RATE_BLOCKS_MIB: u64 = 3072;
const RATE_PAGES_MIB: u64 = 768;
/// Share of memory that the fragmenting file fills.
const FILE_MIB: u64 = MEMORY_MIB / 100 * 80;
/// What is freed for free page reporting.
const REPORTED_MIB: u64 = 500;
/// The driver of 6.12 waits this long after pages were freed, and from one pass to the next
/// (mm/page_reporting.c).
const REPORTING_DELAY: Duration = Duration::from_secs(2);
/// What one of its passes reports: of each free list 64 pieces, of 4 MiB each where memory is free
/// in large pieces.
const REPORTED_IN_A_PASS_MIB: u64 = 64 * 4;
/// No exit for each page: for 256 of them, which is what the stock driver tells at once, there may
/// be a few.
const EXITS_GOAL: Goal = Goal::AtMost(0.1);
/// A balloon that has not changed for this long counts as finished.
const STANDSTILL: Duration = Duration::from_secs(4);

/// A monitor, and what it is measured with.
struct Contender<'a> {
    name: String,
    program: &'a Program,
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Whole blocks are offered, and our kernel takes them.
    Blocks,
    /// The same kernel, and no blocks.
    Pages,
    /// An unpatched kernel, which knows of no blocks.
    Stock,
}

/// Measures everything.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let mut contenders = Vec::new();
    for program in &bed.programs {
        let name = |suffix: &str| format!("{}{suffix}", program.kind.name());
        if program.kind == Kind::Ballast {
            contenders.push(Contender { name: name("-blocks"), program, mode: Mode::Blocks });
            contenders.push(Contender { name: name("-pages"), program, mode: Mode::Pages });
            if bed.payload.path(STOCK_KERNEL).is_file() {
                contenders.push(Contender { name: name("-stock"), program, mode: Mode::Stock });
            }
        } else {
            contenders.push(Contender { name: name(""), program, mode: Mode::Pages });
        }
    }
    let mut figures = Vec::new();
    figures.extend(patiently(|| rates(bed, &contenders))?);
    figures.extend(patiently(|| fragmented(bed, &contenders))?);
    figures.extend(patiently(|| reporting(bed, &contenders))?);
    Ok(figures)
}

impl Contender<'_> {
    fn boot(&self, bed: &Bed, memory_mib: u64, reporting: bool) -> Result<Guest> {
        let mut spec = Spec::new(&bed.payload, memory_mib);
        if self.mode == Mode::Stock {
            spec.kernel = bed.payload.path(STOCK_KERNEL);
        }
        let blocks = self.mode != Mode::Pages;
        spec.balloon = Some(Balloon { reporting, blocks, ..Balloon::default() });
        spec.boot_args = "quiet".into();
        let mut guest = Guest::boot(self.program, spec, &bed.logs)?;
        // A guest that reports would report this at once.
        if !reporting {
            guest.touch_everything()?;
        }
        Ok(guest)
    }

    fn is_blocks(&self) -> bool {
        self.mode == Mode::Blocks
    }

    /// A figure of this contender; the goal is Ballast's only.
    fn figure(&self, what: &str, value: f64, unit: &'static str, goal: Goal) -> Figure {
        let ours = self.program.kind == Kind::Ballast;
        let name = format!("balloon.{}.{what}", self.name);
        let figure = Figure { name, value, unit, goal: if ours { goal } else { Goal::None } };
        println!("  {figure}");
        figure
    }
}

/// How a balloon reached its target, or stopped short of it.
struct Change {
    moved_mib: u64,
    time: Duration,
}

impl Change {
    fn rate(&self) -> f64 {
        self.moved_mib as f64 / self.time.as_secs_f64().max(1e-6)
    }
}

fn change(guest: &mut Guest, target_mib: u64) -> Result<Change> {
    let before = guest.monitor.balloon_actual(&guest.spec)?;
    let started = Instant::now();
    guest.monitor.set_balloon(target_mib, &guest.spec)?;
    let (mut last, mut moved_at) = (before, started);
    loop {
        let actual = guest.monitor.balloon_actual(&guest.spec)?;
        if actual != last {
            (last, moved_at) = (actual, Instant::now());
        }
        if actual == target_mib || moved_at.elapsed() > STANDSTILL {
            return Ok(Change { moved_mib: before.abs_diff(last), time: moved_at - started });
        }
        if started.elapsed() > BALLOON_LIMIT {
            return Err(Error::Check(format!("the balloon still moves, at {actual} MiB")));
        }
        std::thread::sleep(pause(started));
    }
}

/// Exits of all vCPUs since they were `before`, for each page of what was moved; nothing where the
/// host does not count them.
fn exits_per_page(before: Result<u64>, moved_mib: u64) -> Option<f64> {
    let exits = host::kvm_exits().ok()?.saturating_sub(before.ok()?);
    let pages = (moved_mib << 20) / host::PAGE;
    Some(exits as f64 / pages.max(1) as f64)
}

/// Firecracker is the one to beat; where it was not given, the best of those that were.
fn as_good_as(peers: &[(Kind, f64)]) -> Goal {
    let firecracker = peers.iter().find(|(kind, _)| *kind == Kind::Firecracker);
    let rates = peers.iter().map(|(_, rate)| *rate);
    let best = firecracker.map(|(_, rate)| *rate).or_else(|| rates.max_by(f64::total_cmp));
    best.map_or(Goal::None, Goal::AtLeast)
}

/// Free memory in and out again; exits that it took.
fn rates(bed: &Bed, contenders: &[Contender<'_>]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut page_rates = None;
    let mut bare = Vec::new();
    for _ in 0..bed.rounds {
        let time = bare::discards((RATE_BLOCKS_MIB / 2) as usize)?;
        bare.push(RATE_BLOCKS_MIB as f64 / time.as_secs_f64());
    }
    let limit = median(&bare);
    let name = "balloon.host.madvise-of-huge-pages".into();
    figures.push(Figure { name, value: limit, unit: "MiB/s", goal: Goal::None });
    // Pages before blocks, whose goal depends on them.
    for contender in contenders.iter().rev() {
        let amount = if contender.is_blocks() { RATE_BLOCKS_MIB } else { RATE_PAGES_MIB };
        println!("{}: {amount} MiB of free memory", contender.name);
        let (mut inflate, mut deflate, mut exits) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bed.rounds {
            let mut guest = contender.boot(bed, RATE_MEMORY_MIB, false)?;
            let before = host::kvm_exits();
            let change_in = change(&mut guest, amount)?;
            exits.extend(exits_per_page(before, change_in.moved_mib));
            inflate.push(change_in.rate());
            deflate.push(change(&mut guest, 0)?.rate());
        }
        let (inflate, deflate) = (median(&inflate), median(&deflate));
        let goals = match (contender.is_blocks(), page_rates) {
            (true, Some((inflate, deflate))) => {
                (Goal::AtLeast(100.0 * inflate), Goal::AtLeast(100.0 * deflate))
            }
            _ => (Goal::None, Goal::None),
        };
        if contender.program.kind == Kind::Ballast && contender.mode == Mode::Pages {
            page_rates = Some((inflate, deflate));
        }
        figures.push(contender.figure("inflate", inflate, "MiB/s", goals.0));
        figures.push(contender.figure("deflate", deflate, "MiB/s", goals.1));
        if contender.is_blocks() {
            let share = 100.0 * inflate / limit;
            figures.push(contender.figure("inflate-of-madvise", share, "%", Goal::None));
        }
        if !exits.is_empty() {
            let exits = median(&exits);
            figures.push(contender.figure("exits-per-page", exits, "exits", EXITS_GOAL));
        }
    }
    Ok(figures)
}

/// A tmpfs file of 80 % of memory, of which a random half of the pages are freed; then half of
/// memory is asked for.
fn fragmented(bed: &Bed, contenders: &[Contender<'_>]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut peers = Vec::new();
    // Peers before Ballast, whose goal depends on them.
    for contender in contenders.iter().rev() {
        println!("{}: {BALLOON_MIB} MiB of a fragmented guest", contender.name);
        let mut guest = contender.boot(bed, MEMORY_MIB, false)?;
        guest.agent.command(&format!("file-fill pieces {FILE_MIB}M"))?;
        guest.agent.command("file-punch pieces 1")?;
        let (free, blocks) = (host::settled_free()?, host::free_in_blocks()?);
        let exits = host::kvm_exits();
        let change = change(&mut guest, BALLOON_MIB)?;
        let exits = exits_per_page(exits, change.moved_mib);
        let given_bytes = change.moved_mib << 20;
        let given = given_bytes as f64;
        let gained = host::settled_free()?.saturating_sub(free);
        let gained_blocks = host::free_in_blocks()?.saturating_sub(blocks);
        let (memory, _) = host::mappings(guest.monitor.pid(), GUEST_MAPPING)?;
        let percent = |part: u64, whole: f64| 100.0 * part as f64 / whole.max(1.0);
        let block_goal = |goal| if contender.is_blocks() { goal } else { Goal::None };
        let as_quick = as_good_as(&peers);
        figures.extend([
            contender.figure("fragmented.given-up", mib(given_bytes), "MiB", Goal::None),
            contender.figure(
                "fragmented.host-gained",
                percent(gained, given),
                "%",
                Goal::AtLeast(95.0),
            ),
            contender.figure(
                "fragmented.host-gained-as-blocks",
                percent(gained_blocks, given),
                "%",
                block_goal(Goal::AtLeast(95.0)),
            ),
            contender.figure(
                "fragmented.rest-huge-backed",
                percent(memory.huge, memory.rss as f64),
                "%",
                block_goal(Goal::AtLeast(95.0)),
            ),
            contender.figure("fragmented.inflate", change.rate(), "MiB/s", block_goal(as_quick)),
        ]);
        figures.extend(exits.map(|exits| {
            contender.figure("fragmented.exits-per-page", exits, "exits", EXITS_GOAL)
        }));
        if contender.program.kind != Kind::Ballast {
            peers.push((contender.program.kind, change.rate()));
        }
        guest.agent.verify("file-verify pieces")?;
    }
    Ok(figures)
}

/// 500 MiB freed in the guest, which reports them by itself.
fn reporting(bed: &Bed, contenders: &[Contender<'_>]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for contender in contenders {
        println!("{}: {REPORTED_MIB} MiB reported free", contender.name);
        let mut guest = contender.boot(bed, MEMORY_MIB, true)?;
        // In huge pages of the guest's, or it would keep tens of MiB for a while in the lists of
        // free pages that each CPU has, where they are not reported.
        guest.agent.command(&format!("fill reported {REPORTED_MIB}M huge"))?;
        let before = host::settled_free()?;
        let exits = host::kvm_exits();
        guest.agent.command("free reported")?;
        let started = Instant::now();
        let (mut last, mut moved_at) = (before, started);
        while moved_at.elapsed() < REPORTING_DELAY + STANDSTILL {
            let free = host::free()?;
            if free > last + (1 << 20) {
                (last, moved_at) = (free, Instant::now());
                let gained = mib(last.saturating_sub(before));
                println!("  {:.2} s: {gained:.0} MiB", started.elapsed().as_secs_f64());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let time = (moved_at - started).as_secs_f64();
        let gained_bytes = last.saturating_sub(before);
        let gained = mib(gained_bytes);
        let passes = REPORTED_MIB.div_ceil(REPORTED_IN_A_PASS_MIB);
        let limit = passes as f64 * REPORTING_DELAY.as_secs_f64() + 1.0;
        figures.extend([
            contender.figure("reporting.host-gained", gained, "MiB", Goal::AtLeast(490.0)),
            contender.figure("reporting.time", time, "s", Goal::AtMost(limit)),
        ]);
        figures.extend(
            exits_per_page(exits, gained_bytes >> 20).map(|exits| {
                contender.figure("reporting.exits-per-page", exits, "exits", EXITS_GOAL)
            }),
        );
    }
    Ok(figures)
}
