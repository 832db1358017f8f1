// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pause and resume.

use std::fs;
use std::time::Duration;

use harness::guest::Guest;
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde_json::json;

/// A paused guest uses no CPU, sends no reply and loses nothing, for any number of pauses.
pub(crate) fn under_load(context: &Context) -> Result<()> {
    let spec = Spec { cpus: 2, ..Spec::new(&context.payload, 256) };
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    let api = guest.monitor.api().clone();
    guest.agent.start_busy(2, "24M")?;
    let mut last = progress_beyond(&mut guest, 0)?;
    for round in 0..5 {
        api.patch("/vm", &json!({ "state": "Paused" }))?;
        check_eq!(api.get("/")?["state"], json!("Paused"));
        let used = cpu_ticks(guest.monitor.pid())?;
        std::thread::sleep(Duration::from_millis(500));
        let more = cpu_ticks(guest.monitor.pid())? - used;
        // Two busy vCPUs would use up to a hundred ticks in that time.
        check!(more <= 5, "round {round}: {more} ticks of CPU while paused");
        if round == 0 {
            let answer = guest.agent.command_within("ping", Duration::from_secs(1));
            check!(matches!(answer, Err(Error::Timeout { .. })), "a paused guest said {answer:?}");
        }
        // Asked for what is already so: nothing happens.
        api.patch("/vm", &json!({ "state": "Paused" }))?;
        api.patch("/vm", &json!({ "state": "Resumed" }))?;
        check_eq!(api.get("/")?["state"], json!("Running"));
        last = progress_beyond(&mut guest, last)?;
    }
    guest.balloon_to(64)?;
    guest.agent.verify("busy-stop")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Waits until the guest's threads have rewritten more than `pages` pages.
fn progress_beyond(guest: &mut Guest, pages: u64) -> Result<u64> {
    for _ in 0..300 {
        let now = guest.agent.figures("busy-count")?["pages"];
        if now > pages {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(Error::Check(format!("no progress beyond {pages} pages")))
}

/// CPU time that a process has used, in clock ticks (1/100 s).
fn cpu_ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    // The second field, the name, may hold blanks; fields 14 and 15 are user and system time.
    let after_name = text.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<u64> =
        after_name.split(' ').skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    check_eq!(fields.len(), 2);
    Ok(fields.iter().sum())
}
