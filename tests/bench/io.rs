// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks, network and vsock under load, what they cost the host, and how long Debian takes to a login.
//! All files are in memory, so only the I/O path is compared.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::debian::{LOGIN_READY, copy_image};
use harness::figures::Figure;
use harness::guest::{EXIT_LIMIT, Guest};
use harness::monitor::{Balloon, Kind, Monitor, Program, Spec};
use harness::{Error, Result, host};
use serde_json::{Value, json};

use crate::io_cost::{Counted, LinkWatch, count, cpu};
use crate::io_limits::done;
use crate::io_samples::{Better, Sample, Samples};
use crate::{Bed, io_limits, patiently};

/// How much of everything is measured.
#[derive(Debug)]
pub(crate) struct Amounts {
    /// The disk, all of which has data, in MiB. Requests go to any part of it.
    pub(crate) disk_mib: u64,
    /// How long each kind of request is made.
    disk_ms: u64,
    /// Each stream, and how often: TCP gets as fast in some as in others only by chance. And round trips.
    stream_mib: u64,
    streams: u32,
    round_trips: u64,
    /// The same for counting system calls and exits.
    counted_ms: u64,
    counted_mib: u64,
    counted_trips: u64,
    /// How long each fio runs, and how many seconds iperf3.
    pub(crate) fio_ms: u64,
    pub(crate) iperf_s: u64,
    /// For one command of the agent; a guest that takes longer is lost.
    pub(crate) command_limit: Duration,
}

impl Amounts {
    /// Where other programs and the CPU's frequency change what is measured.
    const USUAL: Self = Self {
        disk_mib: 256,
        disk_ms: 1500,
        stream_mib: 96,
        streams: 1,
        round_trips: 2000,
        counted_ms: 200,
        counted_mib: 8,
        counted_trips: 200,
        fio_ms: 2000,
        iperf_s: 2,
        command_limit: Duration::from_secs(180),
    };
    /// Where the clock counts instructions, so that everything takes as long each time.
    const EXACT: Self = Self {
        disk_mib: 64,
        disk_ms: 200,
        stream_mib: 64,
        streams: 15,
        round_trips: 300,
        counted_ms: 100,
        counted_mib: 16,
        counted_trips: 100,
        fio_ms: 300,
        iperf_s: 1,
        command_limit: Duration::from_secs(15),
    };

    /// What is measured, by how time passes.
    pub(crate) fn of(exact_clock: bool) -> &'static Self {
        if exact_clock { &Self::EXACT } else { &Self::USUAL }
    }
}

/// Where the guest finds the host, and by which interface.
const HOST: &str = "10.98.0.1";
const TAP: &str = "bench0";
const VSOCK_PORT: u32 = 901;

/// A kind of disk request: name, direction, order, bytes, depth.
pub(crate) type Pattern = (&'static str, &'static str, &'static str, u64, u64);

/// What is asked of a disk.
pub(crate) const PATTERNS: [Pattern; 8] = [
    ("read-128k-1", "read", "sequential", 128 << 10, 1),
    ("read-128k-32", "read", "sequential", 128 << 10, 32),
    ("write-128k-1", "write", "sequential", 128 << 10, 1),
    ("write-128k-32", "write", "sequential", 128 << 10, 32),
    ("read-4k-1", "read", "random", 4 << 10, 1),
    ("read-4k-32", "read", "random", 4 << 10, 32),
    ("write-4k-1", "write", "random", 4 << 10, 1),
    ("write-4k-32", "write", "random", 4 << 10, 32),
];

/// Disks by the engine that the monitor is to use, with their device in the guest.
const ENGINES: [(&str, &str); 2] = [("Async", "/dev/vda"), ("Sync", "/dev/vdb")];

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// What the load reaches with no guest
    Limits,
    /// Disks
    Disks,
    /// TCP over the network interface
    Tcp,
    /// Streams over vsock
    Vsock,
    /// Debian, from the start to its login; of `park` Debian at work
    Debian,
    /// Of `park`: a guest filled with programs and libraries
    Filled,
}

/// Measures every monitor, round by round, and the limits once a round. A part whose guest is lost in
/// every attempt is left out of the round, with a message.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let mut all = Samples::read(&bed.samples)?;
    let dir = tempfile::tempdir_in("/dev/shm").map_err(Error::io("creating a folder"))?;
    let image = dir.path().join("rootfs.ext4");
    let wants = |part| bed.parts.is_empty() || bed.parts.contains(&part);
    if bed.rounds > 0 && wants(Part::Debian) {
        copy_image(&bed.payload, &image)?;
    }
    for round in 0..bed.rounds as usize {
        println!("round {}/{}", round + 1, bed.rounds);
        if wants(Part::Limits) {
            all.keep(None, io_limits::measure(bed)?);
        }
        for part in
            [Part::Disks, Part::Tcp, Part::Vsock, Part::Debian].into_iter().filter(|p| wants(*p))
        {
            // Another one is first in each round, so that none always has the machine in the same state.
            for at in 0..bed.programs.len() {
                let program = &bed.programs[(at + round) % bed.programs.len()];
                // QEMU would need the host's vhost-vsock.
                if part == Part::Vsock && program.kind == Kind::Qemu {
                    continue;
                }
                let values = one_part(bed, program, part, &image)?;
                all.keep(Some(program.kind), values);
            }
        }
    }
    all.write(&bed.logs.join("samples.json"))?;
    Ok(all.figures())
}

/// Measures one part with one monitor, each time in a new guest: one that is lost takes nothing else
/// with it.
fn one_part(bed: &Bed, program: &Program, part: Part, image: &Path) -> Result<Vec<Sample>> {
    let kind = program.kind.name();
    let measured = patiently(|| match part {
        Part::Debian => debian(bed, program, image).map(|value| vec![value]),
        _ => devices(bed, program, part),
    });
    let values = match measured {
        Err(error) if error.lost_guest() => {
            println!("  {kind}: no {part:?} in this round: {error}");
            Vec::new()
        }
        measured => measured?,
    };
    for value in &values {
        println!("  {kind}.{} {:.3} {}", value.name, value.value, value.unit);
    }
    Ok(values)
}

/// Load on the device, or devices, of one guest.
fn devices(bed: &Bed, program: &Program, part: Part) -> Result<Vec<Sample>> {
    let dir = tempfile::tempdir_in("/dev/shm").map_err(Error::io("creating a folder"))?;
    let socket = dir.path().join("vsock");
    let mut spec = Spec::new(&bed.payload, 512);
    spec.balloon = None;
    spec.boot_args = "quiet".into();
    match part {
        Part::Disks => {
            spec.more.insert("drives".into(), drives(dir.path(), bed.amounts().disk_mib)?);
        }
        Part::Tcp => {
            spec.boot_args = format!("quiet ip=10.98.0.2::{HOST}:255.255.255.0::eth0:off");
            let interface = json!({
                "iface_id": "eth0", "host_dev_name": TAP, "guest_mac": "06:00:0a:62:00:02"
            });
            spec.more.insert("network-interfaces".into(), json!([interface]));
        }
        _ => {
            spec.more.insert("vsock".into(), json!({ "guest_cid": 3, "uds_path": socket }));
        }
    }
    let monitor = Monitor::start(program, &spec, &bed.logs)?;
    let mut guest = Guest::attach(monitor, spec)?;
    let mut values = Vec::new();
    match part {
        Part::Disks => {
            for engine in ENGINES {
                disk(&mut guest, engine, bed.amounts(), &mut values)?;
            }
        }
        Part::Tcp => {
            // The monitor has made the interface by the time its guest runs.
            let ip = bed.payload.path("ip");
            done(Command::new(&ip).args(["addr", "add", &format!("{HOST}/24"), "dev", TAP]))?;
            done(Command::new(&ip).args(["link", "set", TAP, "up"]))?;
            // A port of its own: the services of guests before this one end with the process only.
            let listener = TcpListener::bind((HOST, 0)).map_err(Error::io("listening"))?;
            let port = listener.local_addr().map_err(Error::io("listening"))?.port();
            std::thread::spawn(move || listener.incoming().flatten().for_each(serve_in_thread));
            let target = format!("tcp:{HOST}:{port}");
            streams(&mut guest, ("tcp", &target), bed.amounts(), &mut values)?;
        }
        _ => {
            let mut path = socket.clone().into_os_string();
            path.push(format!("_{VSOCK_PORT}"));
            let listener = UnixListener::bind(path).map_err(Error::io("listening"))?;
            std::thread::spawn(move || listener.incoming().flatten().for_each(serve_in_thread));
            let target = format!("vsock:{VSOCK_PORT}");
            streams(&mut guest, ("vsock", &target), bed.amounts(), &mut values)?;
        }
    }
    guest.agent.farewell("poweroff")?;
    // A monitor that keeps running after its guest has ended is killed; this is not measured.
    let _ = guest.monitor.wait_exit(EXIT_LIMIT / 6);
    Ok(values)
}

/// A disk for each engine, in `dir`.
fn drives(dir: &Path, mib: u64) -> Result<Value> {
    let mut drives = Vec::new();
    for (engine, _) in ENGINES {
        let path = dir.join(engine);
        filled(&path, mib)?;
        drives.push(json!({
            "drive_id": engine, "path_on_host": path, "is_root_device": false,
            "cache_type": "Writeback", "io_engine": engine,
        }));
    }
    Ok(json!(drives))
}

/// All kinds of requests to one disk.
fn disk(
    guest: &mut Guest,
    (engine, device): (&str, &str),
    amounts: &Amounts,
    values: &mut Vec<Sample>,
) -> Result<()> {
    let engine = engine.to_lowercase();
    for (name, direction, order, size, depth) in PATTERNS {
        let before = host::cpu_outside_guest(guest.monitor.pid())?;
        let Amounts { disk_mib, disk_ms, counted_ms, command_limit, .. } = amounts;
        let load = format!("traffic-disk {device} {direction} {order} {size} {depth} {disk_mib}M");
        let figures = guest.agent.figures_within(&format!("{load} {disk_ms}"), *command_limit)?;
        let requests = figures["requests"] as f64;
        let seconds = figures["us"] as f64 / 1e6;
        let gib = requests * size as f64 / f64::from(1 << 30);
        let name = format!("{engine}.{name}");
        let (value, unit) = match size > 4096 {
            true => (gib * 1024.0 / seconds, "MiB/s"),
            false => (requests / seconds, "IOPS"),
        };
        values.push(Sample { name: name.clone(), value, unit, better: Better::More });
        cpu(guest, before, &name, gib, values)?;
        let counted = Counted {
            name: &name,
            load: &load,
            amounts: ["1".into(), counted_ms.to_string()],
            figure: "requests",
            per: 1.0,
            unit: "a-request",
            limit: *command_limit,
        };
        count(guest, &counted, values)?;
    }
    Ok(())
}

/// Both directions and round trips.
fn streams(
    guest: &mut Guest,
    (kind, target): (&str, &str),
    amounts: &Amounts,
    values: &mut Vec<Sample>,
) -> Result<()> {
    for direction in ["send", "receive"] {
        let load = format!("traffic-stream {target} {direction}");
        let name = format!("{kind}.{direction}");
        for _ in 0..amounts.streams {
            let before = host::cpu_outside_guest(guest.monitor.pid())?;
            let watch = LinkWatch::begin(TAP)?;
            let all = format!("{load} {}M", amounts.stream_mib);
            let figures = guest.agent.figures_within(&all, amounts.command_limit)?;
            let gib = figures["bytes"] as f64 / f64::from(1 << 30);
            let value = gib * 1024.0 / (figures["us"] as f64 / 1e6);
            let seen = watch.end(gib * 1024.0)?;
            println!("  {}: {name}: {value:.1} MiB/s, {seen}", guest.monitor.kind().name());
            values.push(Sample { name: name.clone(), value, unit: "MiB/s", better: Better::More });
            cpu(guest, before, &name, gib, values)?;
        }
        let counted = Counted {
            name: &name,
            load: &load,
            amounts: ["128K".into(), format!("{}M", amounts.counted_mib)],
            figure: "bytes",
            per: f64::from(1 << 20),
            unit: "a-MiB",
            limit: amounts.command_limit,
        };
        count(guest, &counted, values)?;
    }
    let load = format!("traffic-turns {target}");
    let round_trips = amounts.round_trips;
    let figures =
        guest.agent.figures_within(&format!("{load} {round_trips}"), amounts.command_limit)?;
    let value = figures["us"] as f64 / round_trips as f64;
    let name = format!("{kind}.round-trip");
    values.push(Sample { name: name.clone(), value, unit: "us", better: Better::Less });
    let counted = Counted {
        name: &name,
        load: &load,
        amounts: ["1".into(), amounts.counted_trips.to_string()],
        figure: "count",
        per: 1.0,
        unit: "a-turn",
        limit: amounts.command_limit,
    };
    count(guest, &counted, values)
}

/// The other side of the agent's `traffic-stream` and `traffic-turns`: the first byte says what is wanted.
fn serve_in_thread(stream: impl Read + Write + Send + 'static) {
    // A guest that goes away ends its stream; what was measured is the guest's to say.
    std::thread::spawn(move || serve(stream));
}

fn serve(mut stream: impl Read + Write) -> std::io::Result<()> {
    let mut piece = vec![0u8; 128 << 10];
    stream.read_exact(&mut piece[..1])?;
    match piece[0] {
        b'S' => {
            let mut total = [0; 8];
            stream.read_exact(&mut total)?;
            let mut left = u64::from_le_bytes(total);
            while left > 0 {
                match stream.read(&mut piece)? {
                    0 => return Ok(()),
                    count => left = left.saturating_sub(count as u64),
                }
            }
            stream.write_all(b"x")
        }
        b'R' => loop {
            stream.write_all(&piece)?;
        },
        _ => loop {
            stream.read_exact(&mut piece[..1])?;
            stream.write_all(&piece[..1])?;
        },
    }
}

/// From the monitor's start to the login of Debian, whose root file system is only read.
fn debian(bed: &Bed, program: &Program, image: &Path) -> Result<Sample> {
    let root = json!({
        "drive_id": "rootfs", "path_on_host": image, "is_root_device": true,
        "is_read_only": true,
    });
    let mut spec = Spec::new(&bed.payload, 512);
    spec.initrd = None;
    spec.balloon = Some(Balloon::default());
    spec.boot_args = "quiet init=/usr/sbin/overlay-init".into();
    spec.more.insert("drives".into(), json!([root]));
    let monitor = Monitor::start(program, &spec, &bed.logs)?;
    let ready = monitor.console().wait_for(0, LOGIN_READY, Duration::from_secs(300))?;
    let value = (ready.at - monitor.started()).as_secs_f64();
    Ok(Sample { name: "debian.login".into(), value, unit: "s", better: Better::Less })
}

/// A file of `mib` MiB with data in every page.
pub(crate) fn filled(path: &Path, mib: u64) -> Result<()> {
    let doing = || Error::io(format!("writing {}", path.display()));
    let mut file = File::create(path).map_err(doing())?;
    let piece = vec![0x5au8; 1 << 20];
    for _ in 0..mib {
        file.write_all(&piece).map_err(doing())?;
    }
    Ok(())
}
