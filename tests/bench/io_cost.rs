// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What load on a device costs the host: CPU time, exits of the guest, system calls.

use std::time::Duration;

use harness::Result;
use harness::guest::Guest;
use harness::host;
use harness::syscalls::SyscallCount;

use crate::io_samples::{Better, Sample};

/// CPU time of the monitor, a GiB, since it was `before`.
pub(crate) fn cpu(
    guest: &Guest,
    before: Duration,
    name: &str,
    gib: f64,
    values: &mut Vec<Sample>,
) -> Result<()> {
    let cpu = host::cpu_outside_guest(guest.monitor.pid())?.saturating_sub(before);
    let value = cpu.as_secs_f64() / gib;
    values.push(Sample { name: format!("{name}.cpu"), value, unit: "s/GiB", better: Better::Less });
    Ok(())
}

/// What the host sees of a stream: how long it is idle, and the frames of an interface.
pub(crate) struct LinkWatch {
    interface: &'static str,
    idle: Duration,
    /// From the guest, and to it; `None` if there is no such interface, as with vsock.
    frames: Option<(u64, u64)>,
}

impl LinkWatch {
    pub(crate) fn begin(interface: &'static str) -> Result<Self> {
        Ok(Self { interface, idle: host::idle()?, frames: host::frames(interface).ok() })
    }

    /// What there was since then, in words, of a stream of `mib`.
    pub(crate) fn end(self, mib: f64) -> Result<String> {
        let idle = host::idle()?.saturating_sub(self.idle).as_millis();
        let seen = format!("host idle for {idle} ms");
        let (Some(before), Some(after)) = (self.frames, host::frames(self.interface).ok()) else {
            return Ok(seen);
        };
        let [from, to] = [after.0 - before.0, after.1 - before.1].map(|count| count as f64 / mib);
        Ok(format!("{seen}; frames a MiB: {from:.2} from the guest, {to:.2} to it"))
    }
}

/// What to count, and by what to divide it.
pub(crate) struct Counted<'a> {
    pub(crate) name: &'a str,
    /// Command of the agent, without its amount.
    pub(crate) load: &'a str,
    /// Almost nothing, and enough.
    pub(crate) amounts: [String; 2],
    /// Of the figures that the command answers with; so many of it are a unit.
    pub(crate) figure: &'a str,
    pub(crate) per: f64,
    pub(crate) unit: &'static str,
    /// For one command of the agent.
    pub(crate) limit: Duration,
}

/// All that is counted, until then.
struct Totals {
    units: f64,
    exits: u64,
    monitor_exits: u64,
    calls: Vec<(u32, u64)>,
}

/// Runs the load in the guest for each amount, and counts the guest's exits and the monitor's system
/// calls. The difference between both runs excludes the serial console, over which commands and
/// answers go. Prints the system calls by their numbers.
pub(crate) fn count(
    guest: &mut Guest,
    counted: &Counted<'_>,
    values: &mut Vec<Sample>,
) -> Result<()> {
    let [little, much] = &counted.amounts;
    // The counters are in debugfs and tracefs, which a host need not have mounted.
    let Some(base) = totals(guest, counted, little)? else { return Ok(()) };
    let Some(all) = totals(guest, counted, much)? else { return Ok(()) };
    let units = all.units - base.units;
    if units <= 0.0 {
        return Ok(());
    }
    let each = |all: u64, base: u64| (all as f64 - base as f64) / units;
    let calls: Vec<(u32, f64)> = all
        .calls
        .iter()
        .map(|(call, count)| {
            let same = base.calls.iter().find(|(other, _)| other == call);
            (*call, each(*count, same.map_or(0, |(_, count)| *count)))
        })
        .collect();
    let Counted { name, unit, .. } = counted;
    let words: Vec<String> =
        calls.iter().map(|(call, count)| format!("{call}: {count:.2}")).collect();
    println!(
        "  {}: {name}: system calls {unit}: {}",
        guest.monitor.kind().name(),
        words.join(", ")
    );
    for (what, value) in [
        ("exits", each(all.exits, base.exits)),
        ("monitor-exits", each(all.monitor_exits, base.monitor_exits)),
        ("calls", calls.iter().map(|(_, count)| count).sum()),
    ] {
        let name = format!("{name}.{what}");
        values.push(Sample { name, value, unit, better: Better::Less });
    }
    Ok(())
}

fn totals(guest: &mut Guest, counted: &Counted<'_>, amount: &str) -> Result<Option<Totals>> {
    let counts = || host::kvm_exits().ok().zip(host::monitor_exits().ok());
    let Some(before) = counts() else { return Ok(None) };
    let Some(calls) = SyscallCount::begin(guest.monitor.pid()) else { return Ok(None) };
    let figures =
        guest.agent.figures_within(&format!("{} {amount}", counted.load), counted.limit)?;
    let calls = calls.end()?;
    let Some(after) = counts() else { return Ok(None) };
    let units = figures[counted.figure] as f64 / counted.per;
    let (exits, monitor_exits) =
        (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    Ok(Some(Totals { units, exits, monitor_exits, calls }))
}
