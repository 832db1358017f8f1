// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Time from the monitor's start to the first line of the guest's userland; the monitor's own
//! memory; balloon rates with single pages.

use std::time::Instant;

use harness::Result;
use harness::figures::{Figure, Goal, median};
use harness::guest::{EXIT_LIMIT, Guest};
use harness::host;
use harness::monitor::{Balloon, Kind, Program, Spec};

use crate::{Bed, GUEST_MAPPING, mib, patiently};

/// The guest's memory, and the part of it that goes through the balloon.
const MEMORY_MIB: u64 = 1024;
const BALLOON_MIB: u64 = 512;

/// Medians for one monitor.
struct Medians {
    kind: Kind,
    boot_s: f64,
    anonymous_mib: f64,
    rss_mib: f64,
    inflate: f64,
    deflate: f64,
}

/// Measures every monitor.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let mut rounds: Vec<Vec<Round>> = bed.programs.iter().map(|_| Vec::new()).collect();
    // Round by round, so that a change in the machine's load falls on all of them.
    for round in 1..=bed.rounds {
        for (program, results) in bed.programs.iter().zip(&mut rounds) {
            let result = patiently(|| one_round(bed, program))?;
            println!(
                "round {round}/{}: {:16} boot {:.3} s, own memory {:.2} MiB anonymous, {:.2} MiB \
                 resident, inflate {:.0} MiB/s, deflate {:.0} MiB/s",
                bed.rounds,
                program.kind.name(),
                result.boot_s,
                result.anonymous_mib,
                result.rss_mib,
                result.inflate,
                result.deflate
            );
            results.push(result);
        }
    }
    let medians: Vec<Medians> = bed
        .programs
        .iter()
        .zip(&rounds)
        .map(|(program, rounds)| {
            let of =
                |field: fn(&Round) -> f64| median(&rounds.iter().map(field).collect::<Vec<f64>>());
            Medians {
                kind: program.kind,
                boot_s: of(|r| r.boot_s),
                anonymous_mib: of(|r| r.anonymous_mib),
                rss_mib: of(|r| r.rss_mib),
                inflate: of(|r| r.inflate),
                deflate: of(|r| r.deflate),
            }
        })
        .collect();
    Ok(figures(&medians))
}

struct Round {
    boot_s: f64,
    anonymous_mib: f64,
    rss_mib: f64,
    inflate: f64,
    deflate: f64,
}

fn one_round(bed: &Bed, program: &Program) -> Result<Round> {
    let mut spec = Spec::new(&bed.payload, MEMORY_MIB);
    // Page by page, as peers do it; `bench balloon` has the blocks.
    spec.balloon = Some(Balloon { blocks: false, ..Balloon::default() });
    spec.boot_args = "quiet".into();
    let mut guest = Guest::boot(program, spec, &bed.logs)?;
    let (_, own) = host::mappings(guest.monitor.pid(), GUEST_MAPPING)?;
    let inflate = rate(&mut guest, BALLOON_MIB)?;
    let deflate = rate(&mut guest, 0)?;
    let boot_s = guest.boot_time.as_secs_f64();
    guest.agent.farewell("poweroff")?;
    // A monitor that keeps running after its guest has ended is killed; this is not measured.
    let _ = guest.monitor.wait_exit(EXIT_LIMIT / 6);
    Ok(Round { boot_s, anonymous_mib: mib(own.anonymous), rss_mib: mib(own.rss), inflate, deflate })
}

/// MiB/s of a change of the balloon. The guest's driver tells its size after each few pages, and
/// every monitor hands that on at once.
fn rate(guest: &mut Guest, target_mib: u64) -> Result<f64> {
    let before = guest.monitor.balloon_actual(&guest.spec)?;
    let started = Instant::now();
    guest.balloon_to(target_mib)?;
    Ok(before.abs_diff(target_mib) as f64 / started.elapsed().as_secs_f64())
}

fn figures(medians: &[Medians]) -> Vec<Figure> {
    let ours = |medians: &Medians| medians.kind == Kind::Ballast;
    let peers: Vec<&Medians> = medians.iter().filter(|medians| !ours(medians)).collect();
    // Firecracker is the one to beat; where it was not given, the best of those that were.
    let reference: Vec<&Medians> = match peers.iter().find(|p| p.kind == Kind::Firecracker) {
        Some(firecracker) => vec![*firecracker],
        None => peers.clone(),
    };
    let least = |field: fn(&Medians) -> f64| reference.iter().map(|m| field(m)).reduce(f64::min);
    let most = |field: fn(&Medians) -> f64| reference.iter().map(|m| field(m)).reduce(f64::max);
    let at_most = |limit: Option<f64>| limit.map_or(Goal::None, Goal::AtMost);
    let at_least = |limit: Option<f64>| limit.map_or(Goal::None, Goal::AtLeast);
    let mut figures = Vec::new();
    for medians in medians {
        let goal = |goal: Goal| if ours(medians) { goal } else { Goal::None };
        let mut add = |what: &str, value: f64, unit: &'static str, wanted: Goal| {
            let name = format!("boot.{}.{what}", medians.kind.name());
            figures.push(Figure { name, value, unit, goal: goal(wanted) });
        };
        add("first-line", medians.boot_s, "s", at_most(least(|m| m.boot_s)));
        add("own-anonymous", medians.anonymous_mib, "MiB", Goal::AtMost(1.0));
        add("own-resident", medians.rss_mib, "MiB", Goal::AtMost(6.0));
        add("inflate-pages", medians.inflate, "MiB/s", at_least(most(|m| m.inflate)));
        add("deflate-pages", medians.deflate, "MiB/s", at_least(most(|m| m.deflate)));
    }
    figures
}
