// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cost of a parked guest, by the host's free memory, and its response time afterwards: on
//! access alone, and after `unpark`. For comparison, the same guest under Firecracker, swapped out
//! to the host's swap on zram, which works for any program. The guests are those of
//! `park_guests.rs`.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::confine::MemoryGroup;
use harness::figures::{Figure, Goal, median};
use harness::host;
use harness::monitor::{Kind, Monitor, Program};
use harness::swap::ZramSwap;
use harness::{Error, Result};
use serde_json::{Value, json};

use crate::park_guests::{Contents, Sleeper};
use crate::park_memory::{self, Parts};
use crate::{Bed, io, mib, patiently};

/// Swap that the host has, in MiB.
const SWAP_MIB: u64 = 512;
/// Requests of which the median counts, while everything is in place.
const WARM: usize = 5;
/// The guest's own timers have had their turn after so long.
const REST: Duration = Duration::from_secs(2);
/// For blocks to be recompressed, which begins a minute after parking.
const REPACK_LIMIT: Duration = Duration::from_secs(600);

/// Answers to requests to park in the emulated machine, where a guest that is trimmed takes its time.
const PARK_LIMIT: Duration = Duration::from_secs(120);

/// How a guest is parked.
#[derive(Clone, Copy)]
struct Way {
    /// Its name in figures.
    name: &'static str,
    codec: &'static str,
    /// The codec for blocks that stay parked.
    second: Option<&'static str>,
    /// The guest gives up what it can spare first.
    trim: bool,
}

impl Way {
    const fn new(name: &'static str, codec: &'static str) -> Self {
        Self { name, codec, second: None, trim: false }
    }
}

const WAYS: [Way; 5] = [
    Way { second: Some("zstd"), trim: true, ..Way::new("lz4-zstd-trimmed", "lz4") },
    Way { trim: true, ..Way::new("zstd-trimmed", "zstd") },
    Way { trim: true, ..Way::new("lz4-trimmed", "lz4") },
    Way::new("lz4", "lz4"),
    Way::new("zstd", "zstd"),
];

/// Measures everything.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (contents, part) in
        [(Contents::Debian, io::Part::Debian), (Contents::Filled, io::Part::Filled)]
    {
        if bed.parts.is_empty() || bed.parts.contains(&part) {
            figures.extend(of_guests(bed, contents)?);
        }
    }
    Ok(figures)
}

fn of_guests(bed: &Bed, contents: Contents) -> Result<Vec<Figure>> {
    let disk = contents.disk(&bed.payload)?;
    let mut figures = Vec::new();
    for program in &bed.programs {
        let mut measured = Figures::new(contents, program.kind);
        match program.kind {
            Kind::Ballast => {
                for way in WAYS {
                    let wanted =
                        bed.ways.is_empty() || bed.ways.iter().any(|name| name == way.name);
                    // Both are for guests as they are used.
                    let special = way.trim || way.second.is_some();
                    if wanted && (contents == Contents::Debian || !special) {
                        let parked = || parked(bed, program, &disk, way, &measured);
                        figures.extend(patiently(parked)?);
                    }
                }
            }
            Kind::Firecracker => {
                measured.prefix += ".zram";
                figures.extend(patiently(|| swapped(bed, program, &disk, &measured))?);
            }
            Kind::Qemu | Kind::CloudHypervisor => {
                println!(
                    "{}: not measured: it cannot park, and swap is the host's",
                    program.kind.name()
                );
            }
        }
    }
    figures.extend(beside_swap(contents, &figures));
    std::fs::remove_file(&disk).map_err(Error::io("removing a disk"))?;
    Ok(figures)
}

/// How an answer from the pool compares with one from the host's swap, if both were measured.
fn beside_swap(contents: Contents, figures: &[Figure]) -> Vec<Figure> {
    let beside = |what: &str| {
        let value = |of: &str| {
            let name = format!("park.{}.{of}.{what}.by-touch", contents.name());
            figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
        };
        let (ours, swap) = (value("ballast.lz4")?, value("firecracker.zram")?);
        let name = format!("park.{}.ballast.lz4.{what}.by-touch-beside-swap", contents.name());
        Some(Figure { name, value: ours / swap, unit: "x-zram", goal: Goal::AtMost(1.0) })
    };
    ["request", "read-all"].into_iter().filter_map(beside).collect()
}

/// Figures of one monitor, printed as they come.
#[derive(Clone)]
struct Figures {
    prefix: String,
    contents: Contents,
    all: Vec<Figure>,
}

impl Figures {
    fn new(contents: Contents, kind: Kind) -> Self {
        let prefix = format!("park.{}.{}", contents.name(), kind.name());
        Self { prefix, contents, all: Vec::new() }
    }

    fn add(&mut self, what: &str, value: f64, unit: &'static str, goal: Goal) {
        let figure = Figure { name: format!("{}.{what}", self.prefix), value, unit, goal };
        println!("  {figure}");
        self.all.push(figure);
    }

    /// What the parts of a parked guest's memory cost.
    fn add_parts(&mut self, monitor: &Monitor, before: &HashMap<String, u64>) -> Result<()> {
        let Parts { guest, pool, own } = park_memory::show(monitor, before)?;
        for (part, bytes) in [("guest-memory", guest), ("pool", pool), ("monitor", own)] {
            self.add(&format!("asleep.{part}"), mib(bytes), "MiB", Goal::None);
        }
        Ok(())
    }

    /// What the guest costs the host now that it sleeps, and its share of what it cost awake.
    fn add_asleep(&mut self, what: &str, empty: u64, awake: u64, goal: Goal) -> Result<()> {
        let asleep = empty.saturating_sub(host::settled_free()?);
        self.add(what, mib(asleep), "MiB", Goal::None);
        let share = 100.0 * asleep as f64 / awake as f64;
        self.add(&format!("{what}-share"), share, "%", goal);
        Ok(())
    }

    /// What an awake guest costs, and how fast it is; returns its cost, and a request's time in
    /// milliseconds.
    fn add_awake(&mut self, sleeper: &mut Sleeper, empty: u64) -> Result<(u64, f64)> {
        let awake = empty.saturating_sub(host::settled_free()?);
        self.add("awake", mib(awake), "MiB", Goal::None);
        self.add("read-all.warm", read_all(sleeper)?, "s", Goal::None);
        let times: Vec<f64> = (0..WARM).map(|_| request(sleeper)).collect::<Result<_>>()?;
        let warm = median(&times);
        self.add("request.warm", warm, "ms", Goal::None);
        Ok((awake, warm))
    }
}

/// How long a request takes, in milliseconds.
fn request(sleeper: &mut Sleeper) -> Result<f64> {
    let began = Instant::now();
    sleeper.request()?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// Reads everything; how long that took, in seconds.
fn read_all(sleeper: &mut Sleeper) -> Result<f64> {
    let began = Instant::now();
    sleeper.read_all()?;
    Ok(began.elapsed().as_secs_f64())
}

fn parked(
    bed: &Bed,
    program: &Program,
    disk: &Path,
    way: Way,
    figures: &Figures,
) -> Result<Vec<Figure>> {
    let Way { name, codec, second, trim } = way;
    let mut figures = figures.clone();
    figures.prefix += &format!(".{name}");
    let park = |guest: &Sleeper| put(guest, "/memory/park", &json!({ "trim": trim }));
    println!("{}", figures.prefix);
    let empty = host::settled_free()?;
    let before = host::meminfo()?;
    let mut spec = figures.contents.spec(&bed.payload, disk);
    let mut paging = json!({ "codec": codec });
    if let Some(second) = second {
        paging["second_codec"] = json!(second);
    }
    spec.more.insert("memory".into(), json!({ "paging": paging }));
    let monitor = Monitor::start(program, &spec, &bed.logs)?;
    let mut guest = figures.contents.begin(monitor, spec)?;
    let (awake, warm) = figures.add_awake(&mut guest, empty)?;

    let report = park(&guest)?;
    println!("  {report}\n  {}\n  {}", status(&guest)?, get(&guest, "/memory/pool")?);
    // The goal is for guests as they are used, with the codec for those that sleep for long.
    let goal = match (figures.contents, second) {
        (Contents::Debian, None) if trim => Goal::AtMost(30.0),
        _ => Goal::None,
    };
    figures.add_asleep("asleep", empty, awake, goal)?;
    figures.add_parts(guest.monitor(), &before)?;
    let took = report["took_us"].as_f64().unwrap_or(0.0) / 1e6;
    figures.add("park", took, "s", Goal::None);
    if second.is_some() {
        repack(&mut guest)?;
        figures.add_asleep("asleep.repacked", empty, awake, Goal::AtMost(30.0))?;
    }

    // The first time the hot set is learnt, the second time it is known.
    figures.add("request.by-touch.first", request(&mut guest)?, "ms", Goal::None);
    let again = park(&guest)?;
    std::thread::sleep(REST);
    println!("  {again}\n  {}", status(&guest)?);
    figures.add("request.by-touch", request(&mut guest)?, "ms", Goal::None);
    let faults = status(&guest)?;
    println!("  {faults}");
    let micros = |name: &str| faults[name].as_f64().unwrap_or(0.0) / 1e3;
    figures.add("fault.p50", micros("fault_p50_ns"), "us", Goal::None);
    figures.add("fault.p99", micros("fault_p99_ns"), "us", Goal::None);

    park(&guest)?;
    std::thread::sleep(REST);
    let began = Instant::now();
    put(&guest, "/memory/unpark", &json!({ "wait": false }))?;
    figures.add("request.during-unpark", request(&mut guest)?, "ms", Goal::None);
    while !status(&guest)?["operation"].is_null() {
        std::thread::sleep(Duration::from_millis(20));
    }
    figures.add("unpark", began.elapsed().as_secs_f64(), "s", Goal::None);
    let after = request(&mut guest)?;
    figures.add("request.after-unpark", after / warm, "x-warm", Goal::AtMost(2.0));
    // Of what the guest gave up, some is read again from the disk: only the first request pays.
    park(&guest)?;
    put(&guest, "/memory/unpark", &json!({}))?;
    let first = request(&mut guest)?;
    figures.add("request.first-after-unpark", first / warm, "x-warm", Goal::AtMost(2.0));

    park(&guest)?;
    figures.add("read-all.by-touch", read_all(&mut guest)?, "s", Goal::None);
    println!("  {}", status(&guest)?);
    Ok(figures.all)
}

/// Lets a policy recompress what is parked, and waits until there is nothing left to do.
fn repack(guest: &mut Sleeper) -> Result<()> {
    let policy = json!({ "preset": "gentle", "cpu_percent": 100, "interval_ms": 200 });
    put(guest, "/memory/policy", &policy)?;
    let deadline = Instant::now() + REPACK_LIMIT;
    let mut last = Value::Null;
    loop {
        std::thread::sleep(Duration::from_secs(5));
        let now = status(guest)?["counters"]["repacked"].clone();
        if now.as_u64() > Some(0) && now == last {
            break;
        }
        harness::check!(Instant::now() < deadline, "blocks are not recompressed: {now}");
        last = now;
    }
    put(guest, "/memory/policy", &json!({ "preset": "off" }))?;
    println!("  {}\n  {}", status(guest)?, get(guest, "/memory/pool")?);
    Ok(())
}

/// The same guest under Firecracker, of which the host swaps out what it can.
fn swapped(bed: &Bed, program: &Program, disk: &Path, figures: &Figures) -> Result<Vec<Figure>> {
    let mut figures = figures.clone();
    println!("{}", figures.prefix);
    let group = MemoryGroup::new("park-bench")?;
    let _swap = ZramSwap::new(SWAP_MIB << 20, "lz4")?;
    let empty = host::settled_free()?;
    let spec = figures.contents.spec(&bed.payload, disk);
    let monitor =
        Monitor::start_confined(program, &spec, &bed.logs, |command| group.admit(command))?;
    let mut guest = figures.contents.begin(monitor, spec)?;
    let (awake, _) = figures.add_awake(&mut guest, empty)?;

    let push_out = || group.reclaim(SWAP_MIB << 20);
    let began = Instant::now();
    push_out();
    figures.add("push-out", began.elapsed().as_secs_f64(), "s", Goal::None);
    figures.add_asleep("asleep", empty, awake, Goal::None)?;
    figures.add("request.by-touch.first", request(&mut guest)?, "ms", Goal::None);
    push_out();
    std::thread::sleep(REST);
    figures.add("request.by-touch", request(&mut guest)?, "ms", Goal::None);
    push_out();
    figures.add("read-all.by-touch", read_all(&mut guest)?, "s", Goal::None);
    Ok(figures.all)
}

fn get(guest: &Sleeper, path: &str) -> Result<Value> {
    guest.monitor().api().get(path)
}

fn status(guest: &Sleeper) -> Result<Value> {
    get(guest, "/memory/paging")
}

fn put(guest: &Sleeper, path: &str, body: &Value) -> Result<Value> {
    let response = guest.monitor().api().with_limit(PARK_LIMIT).put(path, body)?;
    if response.body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&response.body)
        .map_err(|error| Error::Check(format!("{path}: {error}: {}", response.text())))
}
