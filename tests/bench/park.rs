// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cost of a parked guest, by the host's free memory, and its response time afterwards: on
//! access alone, and after `unpark`. For comparison, the same guest under Firecracker, swapped out
//! to the host's swap on zram, which works for any program.
//!
//! The guest's memory is filled from a disk with programs and libraries of a Debian system, every eighth
//! page zero (`harness::userland`). A request makes it read and check 8 MiB of that, always the same.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::confine::MemoryGroup;
use harness::figures::{Figure, Goal, median};
use harness::guest::Guest;
use harness::host;
use harness::monitor::{Kind, Monitor, Program, Spec};
use harness::swap::ZramSwap;
use harness::{Error, Result, userland};
use serde_json::{Value, json};

use crate::{Bed, mib, patiently};

const MEMORY_MIB: u64 = 512;
/// What the guest has of programs, beside its kernel and its initial RAM disk.
const USED_MIB: usize = 224;
/// Pages that a request reads, from this one on.
const HOT: [usize; 2] = [8192, 2048];
/// Requests of which the median counts, while everything is in place.
const WARM: usize = 5;
/// The guest's own timers have had their turn after so long.
const REST: Duration = Duration::from_secs(2);

/// Codecs, by what the configuration calls them.
const CODECS: [&str; 2] = ["lz4", "zstd"];

/// Measures everything.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let disk = PathBuf::from("/tmp/ballast-userland.img");
    println!("{USED_MIB} MiB of programs and libraries, every eighth page zero");
    userland::write(&disk, USED_MIB << 20)?;
    let mut figures = Vec::new();
    for program in &bed.programs {
        match program.kind {
            Kind::Ballast => {
                for codec in CODECS {
                    figures.extend(patiently(|| parked(bed, program, &disk, codec))?);
                }
            }
            Kind::Firecracker => figures.extend(patiently(|| swapped(bed, program, &disk))?),
            Kind::Qemu | Kind::CloudHypervisor => {
                println!(
                    "{}: not measured: it cannot park, and swap is the host's",
                    program.kind.name()
                );
            }
        }
    }
    figures.extend(beside_swap(&figures));
    Ok(figures)
}

/// How an answer from the pool compares with one from the host's swap, if both were measured.
fn beside_swap(figures: &[Figure]) -> Option<Figure> {
    let value = |name: &str| figures.iter().find(|figure| figure.name == name).map(|f| f.value);
    let ours = value("park.ballast.lz4.request.by-touch")?;
    let swap = value("park.firecracker.zram.request.by-touch")?;
    let name = "park.ballast.lz4.request.by-touch-beside-swap".to_owned();
    Some(Figure { name, value: ours / swap, unit: "x-zram", goal: Goal::AtMost(1.0) })
}

/// Figures of one monitor, printed as they come.
struct Figures {
    prefix: String,
    all: Vec<Figure>,
}

impl Figures {
    fn new(name: &str) -> Self {
        Self { prefix: format!("park.{name}"), all: Vec::new() }
    }

    fn add(&mut self, what: &str, value: f64, unit: &'static str, goal: Goal) {
        let figure = Figure { name: format!("{}.{what}", self.prefix), value, unit, goal };
        println!("  {figure}");
        self.all.push(figure);
    }
}

fn spec(bed: &Bed, disk: &Path) -> Spec {
    let mut spec = Spec::new(&bed.payload, MEMORY_MIB);
    let drive = json!({
        "drive_id": "userland",
        "path_on_host": disk,
        "is_root_device": false,
        "is_read_only": true,
    });
    spec.more.insert("drives".into(), json!([drive]));
    spec
}

/// Fills the guest's memory; returns what it costs the host now.
fn fill(guest: &mut Guest, empty: u64) -> Result<u64> {
    guest.agent.command(&format!("load-read used /dev/vda {USED_MIB}M"))?;
    guest.agent.command("write /proc/sys/vm/drop_caches 3")?;
    Ok(empty.saturating_sub(host::settled_free()?))
}

/// How long a request takes, in milliseconds.
fn request(guest: &mut Guest) -> Result<f64> {
    let began = Instant::now();
    guest.agent.verify(&format!("load-verify used {} {}", HOT[0], HOT[1]))?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

fn warm_request(guest: &mut Guest) -> Result<f64> {
    let times: Vec<f64> = (0..WARM).map(|_| request(guest)).collect::<Result<_>>()?;
    Ok(median(&times))
}

/// Reads everything; how long that took, in seconds.
fn read_all(guest: &mut Guest) -> Result<f64> {
    let began = Instant::now();
    guest.agent.verify(&format!("load-verify used 0 {}", USED_MIB << 8))?;
    Ok(began.elapsed().as_secs_f64())
}

fn parked(bed: &Bed, program: &Program, disk: &Path, codec: &str) -> Result<Vec<Figure>> {
    let mut figures = Figures::new(&format!("ballast.{codec}"));
    println!("ballast, {codec}: a guest of {MEMORY_MIB} MiB");
    let empty = host::settled_free()?;
    let mut spec = spec(bed, disk);
    spec.more.insert("memory".into(), json!({ "paging": { "codec": codec } }));
    let mut guest = Guest::boot(program, spec, &bed.logs)?;
    let awake = fill(&mut guest, empty)?;
    figures.add("awake", mib(awake), "MiB", Goal::None);
    let all = read_all(&mut guest)?;
    figures.add("read-all.warm", all, "s", Goal::None);
    let warm = warm_request(&mut guest)?;
    figures.add("request.warm", warm, "ms", Goal::None);

    let report = put(&guest, "/memory/park", &json!({}))?;
    let asleep = empty.saturating_sub(host::settled_free()?);
    let status = guest.monitor.api().get("/memory/paging")?;
    println!("  {report}\n  {status}");
    figures.add("asleep", mib(asleep), "MiB", Goal::None);
    figures.add("asleep-share", 100.0 * asleep as f64 / awake as f64, "%", Goal::AtMost(30.0));
    let took = report["took_us"].as_f64().unwrap_or(0.0) / 1e6;
    figures.add("park", took, "s", Goal::None);

    // The first time the hot set is learnt, the second time it is known.
    let by_touch = request(&mut guest)?;
    figures.add("request.by-touch.first", by_touch, "ms", Goal::None);
    put(&guest, "/memory/park", &json!({}))?;
    std::thread::sleep(REST);
    let by_touch = request(&mut guest)?;
    figures.add("request.by-touch", by_touch, "ms", Goal::None);
    let status = guest.monitor.api().get("/memory/paging")?;
    let micros = |name: &str| status[name].as_f64().unwrap_or(0.0) / 1e3;
    figures.add("fault.p50", micros("fault_p50_ns"), "us", Goal::None);
    figures.add("fault.p99", micros("fault_p99_ns"), "us", Goal::None);

    put(&guest, "/memory/park", &json!({}))?;
    std::thread::sleep(REST);
    let began = Instant::now();
    put(&guest, "/memory/unpark", &json!({ "wait": false }))?;
    let at_once = request(&mut guest)?;
    figures.add("request.during-unpark", at_once, "ms", Goal::None);
    while !guest.monitor.api().get("/memory/paging")?["operation"].is_null() {
        std::thread::sleep(Duration::from_millis(20));
    }
    figures.add("unpark", began.elapsed().as_secs_f64(), "s", Goal::None);
    let after = request(&mut guest)?;
    figures.add("request.after-unpark", after / warm, "x-warm", Goal::AtMost(2.0));

    put(&guest, "/memory/park", &json!({}))?;
    let by_touch = read_all(&mut guest)?;
    figures.add("read-all.by-touch", by_touch, "s", Goal::None);
    Ok(figures.all)
}

/// The same guest under Firecracker, of which the host swaps out what it can.
fn swapped(bed: &Bed, program: &Program, disk: &Path) -> Result<Vec<Figure>> {
    let mut figures = Figures::new("firecracker.zram");
    println!("firecracker: a guest of {MEMORY_MIB} MiB, swap on zram");
    let group = MemoryGroup::new("park-bench")?;
    let _swap = ZramSwap::new(MEMORY_MIB << 20, "lz4")?;
    let empty = host::settled_free()?;
    let spec = spec(bed, disk);
    let monitor =
        Monitor::start_confined(program, &spec, &bed.logs, |command| group.admit(command))?;
    let mut guest = Guest::attach(monitor, spec)?;
    let awake = fill(&mut guest, empty)?;
    figures.add("awake", mib(awake), "MiB", Goal::None);
    figures.add("read-all.warm", read_all(&mut guest)?, "s", Goal::None);
    figures.add("request.warm", warm_request(&mut guest)?, "ms", Goal::None);

    let began = Instant::now();
    group.reclaim(MEMORY_MIB << 20);
    figures.add("push-out", began.elapsed().as_secs_f64(), "s", Goal::None);
    let asleep = empty.saturating_sub(host::settled_free()?);
    figures.add("asleep", mib(asleep), "MiB", Goal::None);
    figures.add("asleep-share", 100.0 * asleep as f64 / awake as f64, "%", Goal::None);
    figures.add("request.by-touch.first", request(&mut guest)?, "ms", Goal::None);
    group.reclaim(MEMORY_MIB << 20);
    std::thread::sleep(REST);
    figures.add("request.by-touch", request(&mut guest)?, "ms", Goal::None);
    group.reclaim(MEMORY_MIB << 20);
    figures.add("read-all.by-touch", read_all(&mut guest)?, "s", Goal::None);
    Ok(figures.all)
}

fn put(guest: &Guest, path: &str, body: &Value) -> Result<Value> {
    let response = guest.monitor.api().put(path, body)?;
    if response.body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&response.body)
        .map_err(|error| Error::Check(format!("{path}: {error}: {}", response.text())))
}
