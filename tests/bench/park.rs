// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a parked guest costs the host, by the host's free memory, and how long it takes to come back:
//! by touch alone, and after `unpark`. Peers have no such thing; what the same guest costs them is
//! printed beside it.

use std::time::Instant;

use harness::figures::{Figure, Goal};
use harness::guest::Guest;
use harness::host;
use harness::monitor::{Kind, Program, Spec};
use harness::{Error, Result};
use serde_json::{Value, json};

use crate::{Bed, mib, patiently};

const MEMORY_MIB: u64 = 512;
/// Text that the guest has in memory, beside its kernel and its initial RAM disk.
const USED_MIB: u64 = 64;

/// Measures everything.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for program in &bed.programs {
        figures.extend(patiently(|| one(bed, program))?);
    }
    Ok(figures)
}

fn one(bed: &Bed, program: &Program) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let ours = program.kind == Kind::Ballast;
    let mut add = |what: &str, value: f64, unit: &'static str, goal: Goal| {
        let name = format!("park.{}.{what}", program.kind.name());
        let figure = Figure { name, value, unit, goal: if ours { goal } else { Goal::None } };
        println!("  {figure}");
        figures.push(figure);
    };
    println!("{}: a guest of {MEMORY_MIB} MiB", program.kind.name());
    let empty = host::settled_free()?;
    let mut guest = Guest::boot(program, Spec::new(&bed.payload, MEMORY_MIB), &bed.logs)?;
    guest.agent.command(&format!("text-fill used {USED_MIB}M"))?;
    let warm = empty.saturating_sub(host::settled_free()?);
    add("awake", mib(warm), "MiB", Goal::None);
    if ours {
        let api = guest.monitor.api().clone();
        let report = put(&guest, "/memory/park")?;
        let parked = empty.saturating_sub(host::settled_free()?);
        let status = api.get("/memory/paging")?;
        println!("  {report}\n  {status}");
        add("parked", mib(parked), "MiB", Goal::None);
        add("parked-share", 100.0 * parked as f64 / warm as f64, "%", Goal::AtMost(30.0));
        let took = report["took_us"].as_f64().unwrap_or(0.0) / 1e6;
        add("park", took, "s", Goal::None);

        let by_touch = verify(&mut guest)?;
        let again = verify(&mut guest)?;
        add("verify.by-touch", by_touch, "s", Goal::None);
        add("verify.warm", again, "s", Goal::None);
        let status = api.get("/memory/paging")?;
        let nanos = |name: &str| status[name].as_f64().unwrap_or(0.0) / 1e3;
        add("fault.p50", nanos("fault_p50_ns"), "us", Goal::None);
        add("fault.p99", nanos("fault_p99_ns"), "us", Goal::None);

        put(&guest, "/memory/park")?;
        let began = Instant::now();
        put(&guest, "/memory/unpark")?;
        add("unpark", began.elapsed().as_secs_f64(), "s", Goal::None);
        let after = verify(&mut guest)?;
        add("verify.after-unpark", after / again, "x-warm", Goal::AtMost(2.0));
    }
    guest.agent.verify("text-verify used")?;
    Ok(figures)
}

fn put(guest: &Guest, path: &str) -> Result<Value> {
    let response = guest.monitor.api().put(path, &json!({}))?;
    serde_json::from_slice(&response.body)
        .map_err(|error| Error::Check(format!("{path}: {error}: {}", response.text())))
}

/// How long the guest takes to read all that it uses, in seconds.
fn verify(guest: &mut Guest) -> Result<f64> {
    let began = Instant::now();
    guest.agent.verify("text-verify used")?;
    Ok(began.elapsed().as_secs_f64())
}
