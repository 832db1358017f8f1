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
use harness::figures::{Figure, Goal, median};
use harness::guest::{EXIT_LIMIT, Guest};
use harness::monitor::{Balloon, Kind, Monitor, Program, Spec};
use harness::{Error, Result, host};
use serde_json::{Value, json};

use crate::io_cost::{Counted, count, cpu};
use crate::{Bed, io_limits, patiently};

/// The disk, all of which has data, and the part of it that requests go to, in MiB.
const DISK_MIB: u64 = 256;
/// How long each kind of request is made.
const DISK_MS: u64 = 1500;
/// Bytes of each stream, and round trips.
const STREAM_MIB: u64 = 96;
const ROUND_TRIPS: u64 = 2000;
/// The same for counting system calls, which need no long run.
const COUNTED_MS: u64 = 200;
const COUNTED_MIB: u64 = 8;
const COUNTED_TRIPS: u64 = 200;
/// For one command of the agent.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(180);
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
    /// Debian, from the start to its login
    Debian,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// One value of one round.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// Measures every monitor, round by round, and the limits once a round. A part whose guest is lost in
/// every attempt is left out of the round, with a message.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let mut all: Vec<(Option<Kind>, Vec<Sample>)> = Vec::new();
    let dir = tempfile::tempdir_in("/dev/shm").map_err(Error::io("creating a folder"))?;
    let image = dir.path().join("rootfs.ext4");
    let wants = |part| bed.parts.is_empty() || bed.parts.contains(&part);
    if wants(Part::Debian) {
        copy_image(&bed.payload, &image)?;
    }
    for round in 0..bed.rounds as usize {
        println!("round {}/{}", round + 1, bed.rounds);
        if wants(Part::Limits) {
            keep(&mut all, None, io_limits::measure(bed)?);
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
                keep(&mut all, Some(program.kind), values);
            }
        }
    }
    Ok(figures(&all))
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

fn keep(all: &mut Vec<(Option<Kind>, Vec<Sample>)>, kind: Option<Kind>, values: Vec<Sample>) {
    match all.iter_mut().find(|(known, _)| *known == kind) {
        Some((_, known)) => known.extend(values),
        None => all.push((kind, values)),
    }
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
            spec.more.insert("drives".into(), drives(dir.path())?);
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
            for (engine, device) in ENGINES {
                disk(&mut guest, engine, device, &mut values)?;
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
            streams(&mut guest, "tcp", &format!("tcp:{HOST}:{port}"), &mut values)?;
        }
        _ => {
            let mut path = socket.clone().into_os_string();
            path.push(format!("_{VSOCK_PORT}"));
            let listener = UnixListener::bind(path).map_err(Error::io("listening"))?;
            std::thread::spawn(move || listener.incoming().flatten().for_each(serve_in_thread));
            streams(&mut guest, "vsock", &format!("vsock:{VSOCK_PORT}"), &mut values)?;
        }
    }
    guest.agent.farewell("poweroff")?;
    // A monitor that keeps running after its guest has ended is killed; this is not measured.
    let _ = guest.monitor.wait_exit(EXIT_LIMIT / 6);
    Ok(values)
}

/// A disk for each engine, in `dir`.
fn drives(dir: &Path) -> Result<Value> {
    let mut drives = Vec::new();
    for (engine, _) in ENGINES {
        let path = dir.join(engine);
        filled(&path)?;
        drives.push(json!({
            "drive_id": engine, "path_on_host": path, "is_root_device": false,
            "cache_type": "Writeback", "io_engine": engine,
        }));
    }
    Ok(json!(drives))
}

/// All kinds of requests to one disk.
fn disk(guest: &mut Guest, engine: &str, device: &str, values: &mut Vec<Sample>) -> Result<()> {
    let engine = engine.to_lowercase();
    for (name, direction, order, size, depth) in PATTERNS {
        let before = host::cpu_outside_guest(guest.monitor.pid())?;
        let load = format!("traffic-disk {device} {direction} {order} {size} {depth} {DISK_MIB}M");
        let figures = guest.agent.figures_within(&format!("{load} {DISK_MS}"), COMMAND_LIMIT)?;
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
            amounts: ["1".into(), COUNTED_MS.to_string()],
            figure: "requests",
            per: 1.0,
            unit: "a-request",
        };
        count(guest, &counted, values)?;
    }
    Ok(())
}

/// Both directions and round trips.
fn streams(guest: &mut Guest, kind: &str, target: &str, values: &mut Vec<Sample>) -> Result<()> {
    for direction in ["send", "receive"] {
        let before = host::cpu_outside_guest(guest.monitor.pid())?;
        let load = format!("traffic-stream {target} {direction}");
        let figures =
            guest.agent.figures_within(&format!("{load} {STREAM_MIB}M"), COMMAND_LIMIT)?;
        let gib = figures["bytes"] as f64 / f64::from(1 << 30);
        let name = format!("{kind}.{direction}");
        let value = gib * 1024.0 / (figures["us"] as f64 / 1e6);
        values.push(Sample { name: name.clone(), value, unit: "MiB/s", better: Better::More });
        cpu(guest, before, &name, gib, values)?;
        let counted = Counted {
            name: &name,
            load: &load,
            amounts: ["128K".into(), format!("{COUNTED_MIB}M")],
            figure: "bytes",
            per: f64::from(1 << 20),
            unit: "a-MiB",
        };
        count(guest, &counted, values)?;
    }
    let load = format!("traffic-turns {target}");
    let figures = guest.agent.figures_within(&format!("{load} {ROUND_TRIPS}"), COMMAND_LIMIT)?;
    let value = figures["us"] as f64 / ROUND_TRIPS as f64;
    let name = format!("{kind}.round-trip");
    values.push(Sample { name: name.clone(), value, unit: "us", better: Better::Less });
    let counted = Counted {
        name: &name,
        load: &load,
        amounts: ["1".into(), COUNTED_TRIPS.to_string()],
        figure: "count",
        per: 1.0,
        unit: "a-turn",
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
            while stream.read(&mut piece)? > 0 {}
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

/// A file with data in every page.
pub(crate) fn filled(path: &Path) -> Result<()> {
    let doing = || Error::io(format!("writing {}", path.display()));
    let mut file = File::create(path).map_err(doing())?;
    let piece = vec![0x5au8; 1 << 20];
    for _ in 0..DISK_MIB {
        file.write_all(&piece).map_err(doing())?;
    }
    Ok(())
}

/// Runs a program of the host; it has to succeed. Gives its output.
pub(crate) fn done(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().map_err(Error::io(format!("{command:?}")))?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    harness::check!(output.status.success(), "{command:?}: {}{errors}", output.status);
    Ok(output.stdout)
}

/// Medians; Ballast's goal in each row is the best of its peers in it.
fn figures(all: &[(Option<Kind>, Vec<Sample>)]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (kind, values) in all {
        let mut names: Vec<&str> = Vec::new();
        for value in values {
            if !names.contains(&value.name.as_str()) {
                names.push(&value.name);
            }
        }
        for name in names {
            let Some((value, unit, better)) = middle(values, name) else { continue };
            let peers = all.iter().filter(|(other, _)| {
                *kind == Some(Kind::Ballast) && other.is_some() && *other != Some(Kind::Ballast)
            });
            let theirs = peers.filter_map(|(_, values)| middle(values, name)).map(|(v, ..)| v);
            let goal = match better {
                Better::More => theirs.reduce(f64::max).map_or(Goal::None, Goal::AtLeast),
                Better::Less => theirs.reduce(f64::min).map_or(Goal::None, Goal::AtMost),
            };
            let who = kind.map_or("limit", Kind::name);
            figures.push(Figure { name: format!("io.{who}.{name}"), value, unit, goal });
        }
    }
    figures
}

/// The median of all rounds.
fn middle(values: &[Sample], name: &str) -> Option<(f64, &'static str, Better)> {
    let of_name: Vec<&Sample> = values.iter().filter(|value| value.name == name).collect();
    let first = of_name.first()?;
    let numbers: Vec<f64> = of_name.iter().map(|value| value.value).collect();
    Some((median(&numbers), first.unit, first.better))
}
