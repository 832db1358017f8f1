// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many guests fit on one host: guests of 256 MiB, each with a small web service, are added one
//! after another and asked in turn, until one is killed, does not answer or answers wrongly, or until
//! the 99th percentile of response times passes twice that of the first guest alone. The picture shows
//! how they fare beyond that, too. After one was added they are asked until the host gains no more free
//! memory: the last window counts.
//!
//! A service keeps data with the contents of programs and libraries (`harness::userland`), and frees
//! what it needed to start. A request reads and checks 2 MiB of the data, always the same; one in each
//! window reads another place. Half of the requests go round all guests, the others to the hot ones,
//! one in eight.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::confine;
use harness::figures::Figure;
use harness::guest::Guest;
use harness::host;
use harness::monitor::{Balloon, Monitor, Program, Spec};
use harness::service::{PORT, Service};
use harness::swap::ZramSwap;
use harness::{Error, Result};
use serde_json::json;

use crate::density_load::{
    ANSWER, Contents, DATA_MIB, EVERYTHING, WINDOW, Window, ask, while_asking,
};
use crate::density_plot::Point;
use crate::density_rows::{Rows, SLOWER, Setup, figures, fit};
use crate::{Bed, mib};

const MEMORY_MIB: u64 = 256;
/// What it frees once it has started.
const START_UP_MIB: usize = 64;
/// How much slower than alone ends the attempt: until then guests are added for the picture.
const HOPELESS: f64 = 10.0;
/// Settings of the policy for a host that does nothing else: it is tight with twice as much left, and
/// all of a guest but this may be compressed.
const HOST_RESERVE_MIB: u64 = 64;
const FLOOR_MIB: u64 = 8;
/// For a service to start.
const START: Duration = Duration::from_secs(240);
/// More guests are not tried.
const MOST: usize = 64;
/// Most windows in which guests may come to rest after one more was added.
const SETTLING: usize = 12;
/// Windows in a row in which the host gains no more than [`STILL_MIB`]: the guests are at rest.
const AT_REST: usize = 3;
const STILL_MIB: f64 = 2.0;
/// Guests whose whole data is checked at the end.
const CHECKED: usize = 3;
/// Swap space, compressed; more than can be filled.
const SWAP: u64 = 4 << 30;

/// Why no more guests were added.
enum End {
    /// A guest could not be started, was killed, or gave no or a wrong answer.
    Lost(Error),
    /// Response times, in milliseconds.
    Slow {
        p99: f64,
        alone: f64,
    },
    Most,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(error) => write!(f, "{error}"),
            Self::Slow { p99, alone } => write!(f, "p99 {p99:.1} ms, alone {alone:.1} ms"),
            Self::Most => write!(f, "no more are tried"),
        }
    }
}

/// A guest and its service.
struct Served {
    guest: Guest,
    service: Service,
}

/// Measures what is wanted, beside the rows that earlier runs have left.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let mut rows = Rows::read(&bed.samples)?;
    if bed.rounds > 0 {
        measure_rows(bed, &mut rows)?;
    }
    rows.write(&bed.logs)?;
    Ok(figures(&rows))
}

fn measure_rows(bed: &Bed, rows: &mut Rows) -> Result<()> {
    confine::indispensable()?;
    let contents = Contents::write(Path::new("/tmp/ballast-userland.img"))?;
    println!(
        "guests of {MEMORY_MIB} MiB with {DATA_MIB} MiB of data; {START_UP_MIB} MiB are freed after \
         the start; the host has {:.0} MiB free",
        mib(host::settled_free()?)
    );
    for program in &bed.programs {
        let wanted =
            |setup: &Setup| bed.ways.is_empty() || bed.ways.iter().any(|way| way == setup.name());
        for setup in Setup::of(program.kind).iter().copied().filter(wanted) {
            rows.keep(setup, row(bed, program, setup, &contents)?);
            rows.write(&bed.logs)?;
        }
    }
    Ok(())
}

/// Adds guests as long as that goes well; a point for each number of guests with which it did.
fn row(bed: &Bed, program: &Program, setup: Setup, contents: &Contents) -> Result<Vec<Point>> {
    println!("{}", setup.name());
    let _swap = match setup {
        Setup::Zram => Some(swap()?),
        _ => None,
    };
    let sockets = tempfile::tempdir_in("/dev/shm").map_err(Error::io("creating a folder"))?;
    let mut guests: Vec<Served> = Vec::new();
    let mut points: Vec<Point> = Vec::new();
    let end = loop {
        if guests.len() == MOST {
            break End::Most;
        }
        let socket = sockets.path().join(guests.len().to_string());
        let added = while_asking(&services(&guests), contents, || {
            add(bed, program, setup, contents, &socket)
        });
        match added {
            Ok(served) => guests.push(served),
            Err(error) => break End::Lost(error),
        }
        match load(&guests, contents, &points) {
            Ok(point) => points.push(point),
            Err(error) => break End::Lost(error),
        }
        if let (Setup::Dense, Some(first)) = (setup, guests.first()) {
            println!("  guest 0: {}", first.guest.monitor.api().get("/memory/paging")?);
        }
        let (alone, last) = (points[0].p99_ms, points[points.len() - 1].p99_ms);
        if last > alone * HOPELESS {
            break End::Slow { p99: last, alone };
        }
    };
    println!("  {} guests fit, {} answered; then: {end}", fit(&points), points.len());
    if let Some(served) = guests.first().filter(|_| setup == Setup::Dense) {
        println!("  {:#}", served.guest.monitor.api().get("/memory/policy")?);
    }
    guests.truncate(CHECKED.min(points.len()));
    for (number, served) in guests.iter().enumerate() {
        match served.service.ask(EVERYTHING, ANSWER) {
            Ok((sum, took)) => {
                harness::check!(sum == contents.all, "guest {number} has lost data");
                println!("  guest {number}: all data right, in {:.1} s", took.as_secs_f64());
                served.guest.check_kernel_is_content()?;
            }
            // It may be the one that was killed.
            Err(error) => println!("  guest {number}: {error}"),
        }
    }
    Ok(points)
}

fn services(guests: &[Served]) -> Vec<&Service> {
    guests.iter().map(|served| &served.service).collect()
}

/// Starts a guest and its service.
fn add(
    bed: &Bed,
    program: &Program,
    setup: Setup,
    contents: &Contents,
    socket: &Path,
) -> Result<Served> {
    let mut spec = Spec::new(&bed.payload, MEMORY_MIB);
    spec.balloon = match setup {
        Setup::Plain | Setup::Zram => None,
        Setup::Reporting | Setup::Dense => Some(Balloon { reporting: true, ..Balloon::default() }),
    };
    if setup == Setup::Dense {
        let memory = json!({
            "paging": { "second_codec": "zstd:3" },
            "policy": {
                "preset": "dense",
                "host_reserve_mib": HOST_RESERVE_MIB,
                "floor_mib": FLOOR_MIB,
                "cpu_percent": cpu_percent(bed.exact_clock),
                "interval_ms": interval_ms(bed.exact_clock),
            },
        });
        spec.more.insert("memory".into(), memory);
    }
    let drive = json!({
        "drive_id": "userland",
        "path_on_host": contents.disk,
        "is_root_device": false,
        "is_read_only": true,
    });
    spec.more.insert("drives".into(), json!([drive]));
    spec.more.insert("vsock".into(), json!({ "guest_cid": 3, "uds_path": socket }));
    let monitor = Monitor::start_confined(program, &spec, &bed.logs, confine::expendable)?;
    let mut guest = Guest::attach(monitor, spec)?;
    let start = format!("service-start {PORT} /dev/vda {DATA_MIB}M {START_UP_MIB}M");
    guest.agent.command_within(&start, START)?;
    Ok(Served { guest, service: Service::new(socket) })
}

/// Limit on CPU time for eviction. A CPU of the clock that counts instructions does 125 million a
/// second, a thirtieth of a real one: half of it is what two percent are elsewhere.
fn cpu_percent(exact_clock: bool) -> Option<u8> {
    exact_clock.then_some(50)
}

/// Time between two rounds of the policy. That CPU needs 10 ms for one, a request's time: with rounds of
/// all guests each second, every tenth request would wait for one.
fn interval_ms(exact_clock: bool) -> u32 {
    if exact_clock { 5000 } else { 1000 }
}

/// Asks all guests for a while. The limit comes from the first point, once there is one.
fn load(guests: &[Served], contents: &Contents, points: &[Point]) -> Result<Point> {
    let alone = points.first().map(|point| point.p99_ms);
    let requests = if alone.is_some() { WINDOW } else { 2 * WINDOW };
    let limit = alone.map_or(f64::INFINITY, |alone| alone * SLOWER);
    let services = services(guests);
    let window = || -> Result<Window> {
        let seen = ask(&services, contents, requests)?;
        let slowest: Vec<String> =
            seen.slowest.iter().map(|(number, ms)| format!("{ms:.0} (guest {number})")).collect();
        println!(
            "  {} guests: p50 {:.1} ms, p99 {:.1} ms, {:.0} MiB free; slowest {}",
            guests.len(),
            seen.p50,
            seen.p99,
            mib(host::free()?),
            slowest.join(", ")
        );
        Ok(seen)
    };
    let mut seen = window()?;
    let (mut free, mut still) = (mib(host::free()?), 0);
    for _ in 1..SETTLING {
        if still == AT_REST {
            break;
        }
        seen = window()?;
        let now = mib(host::free()?);
        still = if now > free + STILL_MIB { 0 } else { still + 1 };
        free = free.max(now);
    }
    if seen.p99 > limit {
        seen = window()?;
    }
    Ok(Point { guests: guests.len(), p99_ms: seen.p99, free_mib: mib(host::free()?) })
}

/// Swap on zram, and the kernel set up for it: no read-ahead, and swapping is not dearer than reading
/// from a disk.
fn swap() -> Result<ZramSwap> {
    for (name, value) in [("page-cluster", "0"), ("swappiness", "100")] {
        let path = format!("/proc/sys/vm/{name}");
        fs::write(&path, value).map_err(Error::io(format!("writing {path}")))?;
    }
    ZramSwap::new(SWAP, "zstd")
}
