// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench hold`: how long a guest and clients can block the monitor, and the monitor's
//! cost. Natively: the guest requests the longest operations of its devices and floods its serial
//! port, whose reader has stopped, while clients send every request that takes a lock.
//!
//! Each hold is given in wall-clock time and in CPU time of the holding thread. Wall-clock time
//! includes the time in which the CPU ran something else: the guest, the clients, other programs. So
//! each round also measures a limit, after the holds and under the same load: how long a thread that
//! only computes needs for the CPU time of the longest hold, and how long it is without a CPU. The
//! monitor's own memory is measured with an idle guest: under load it includes host memory that the
//! guest requests, which budgets limit, and the guest's memory lies in many mappings.
//!
//! - `corpus.rs`: the guest
//! - `limit.rs`: what the machine takes from a thread that only computes
//! - `own_memory.rs`: the monitor's own memory

mod corpus;
mod limit;
mod own_memory;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::build::{self, Profile};
use crate::error::{Error, IoContext, Result, task_error};
use crate::paths;
use limit::{Computing, Taken};
use own_memory::OwnMemory;

/// Timeout of every step.
const LIMIT: Duration = Duration::from_secs(60);
/// Requests made under load.
const REQUESTS: usize = 300;
/// Requests: each takes a device's lock, or walks memory.
const PATHS: [&str; 7] = [
    "/memory",
    "/memory/blocks",
    "/balloon/statistics",
    "/gpu",
    "/gpu/scanouts/0",
    "/metrics",
    "/vm/config",
];
/// Commands to the display after which a round is good: the guest has gone through its list twice.
const COMMANDS: f64 = 100.0;
/// Size of the guest, which distinguishes its memory from the monitor's.
const GUEST_MIB: u64 = 64;

/// Figures of one round.
struct Round {
    start_ms: f64,
    end_ms: f64,
    turn: Longest,
    hold: Longest,
    limit: Taken,
}

/// The longest of some holds, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Longest {
    wall_ms: f64,
    cpu_ms: f64,
}

/// Measures `rounds` times; gives the lines of the figures.
pub(crate) fn measure(profile: Profile, rounds: u32) -> Result<Vec<String>> {
    let ballast = build::ballast(profile)?;
    let rounds: Result<Vec<Round>> = (0..rounds.max(1))
        .flat_map(|_| [false, true])
        .map(|in_vcpu| round(&ballast, in_vcpu))
        .collect();
    let rounds = rounds?;
    let own: Result<Vec<OwnMemory>> =
        rounds.iter().map(|_| own_memory::measure(&ballast)).collect();
    let own = own?;
    let limit = rounds.iter().fold(Taken::default(), |worst, round| worst.or_worse(round.limit));
    let worst = |of: fn(&Round) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let start = median(rounds.iter().map(|round| round.start_ms));
    let figures = [
        ("event-loop", worst(|round| round.turn.wall_ms), "ms", Some(5.0)),
        ("event-loop-cpu", worst(|round| round.turn.cpu_ms), "ms", Some(5.0)),
        ("device-lock", worst(|round| round.hold.wall_ms), "ms", Some(5.0)),
        ("device-lock-cpu", worst(|round| round.hold.cpu_ms), "ms", Some(5.0)),
        ("limit-computing", ms(limit.computing), "ms", None),
        ("limit-gap", ms(limit.gap), "ms", None),
        ("sigterm-to-exit", worst(|round| round.end_ms), "ms", Some(2000.0)),
        ("start-to-first-byte", start, "ms", Some(50.0)),
        ("anonymous", median(own.iter().map(|own| own.anonymous_mib)), "MiB", Some(0.3)),
        ("resident", median(own.iter().map(|own| own.resident_mib)), "MiB", Some(4.4)),
    ];
    let lines = figures.map(|(name, value, unit, goal)| {
        let (goal, met) = match goal {
            Some(goal) => (format!("<={goal:.3}"), value <= goal),
            None => ("-".into(), true),
        };
        let verdict = if met { "met" } else { "short" };
        format!("figure hold.{name} {value:.3} {unit} goal {goal} {verdict}")
    });
    for line in &lines {
        println!("{line}");
    }
    Ok(lines.into())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A monitor whose guest runs, the socket of its API, and the time that this took.
struct Started {
    monitor: Monitor,
    socket: PathBuf,
    start_ms: f64,
}

struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        // It has ended already where all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Monitor {
    /// Starts a monitor with guest `kernel` and waits for the guest's first byte. Nothing reads what
    /// the guest writes later.
    fn start(ballast: &Path, kernel: &[u8], arguments: &[&str]) -> Result<Started> {
        let dir = paths::target().join("hold");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).doing("creating", &dir)?;
        let (path, socket) = (dir.join("kernel"), dir.join("api"));
        fs::write(&path, kernel).doing("writing", &path)?;
        let memory = format!("{GUEST_MIB}M");
        let started = Instant::now();
        let child = Command::new(ballast)
            .args(["run", "--memory", &memory, "--balloon", "target=0M,stats=1"])
            .arg("--kernel")
            .arg(&path)
            .arg("--api-sock")
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| Error::Spawn { program: "ballast".into(), source })?;
        let mut monitor = Self(child);
        let Some(output) = &mut monitor.0.stdout else { return task_error("no output") };
        output.read_exact(&mut [0]).doing("waiting for the guest of", ballast)?;
        Ok(Started { monitor, socket, start_ms: started.elapsed().as_secs_f64() * 1e3 })
    }
}

fn round(ballast: &Path, in_vcpu: bool) -> Result<Round> {
    let arguments = ["--count-cpu-time", "--gpu", "640x480"];
    let Started { mut monitor, socket, start_ms } =
        Monitor::start(ballast, &corpus::image(in_vcpu), &arguments)?;
    let loaded = Instant::now();
    let metrics = loop {
        let metrics = load(&socket)?;
        if metrics["gpu"]["commands"].as_f64().is_some_and(|commands| commands >= COMMANDS) {
            break metrics;
        }
        if loaded.elapsed() > LIMIT {
            return task_error(format!("the guest does not drive its devices: {metrics}"));
        }
    };
    let loaded = loaded.elapsed();
    let monitors = &metrics["monitor"];
    println!(
        "GPU commands in {}, load {}: holds {} us, of CPU time {}; turns {}, of CPU time {}",
        if in_vcpu { "the vCPU" } else { "the event loop" },
        load_average(),
        monitors["longest_hold_us"],
        monitors["longest_hold_cpu_us"],
        monitors["longest_turn_us"],
        monitors["longest_turn_cpu_us"]
    );
    let longest = |group: &str| {
        let values = monitors[group].as_object().into_iter().flatten();
        values.filter_map(|(_, us)| us.as_f64()).fold(0.0, f64::max) / 1e3
    };
    let (turn, hold) = ("longest_turn", "longest_hold");
    let [turn, hold] = [turn, hold].map(|name| Longest {
        wall_ms: longest(&format!("{name}_us")),
        cpu_ms: longest(&format!("{name}_cpu_us")),
    });

    // The holds are known: from here on, the thread of the limit may disturb them.
    let computing = Computing::start(Duration::from_secs_f64(turn.cpu_ms.max(hold.cpu_ms) / 1e3))?;
    let started = Instant::now();
    while started.elapsed() < loaded {
        load(&socket)?;
    }
    let limit = computing.stop()?;
    println!("a thread that only computes: {limit:?}");

    let ending = Instant::now();
    let pid = i32::try_from(monitor.0.id()).ok().and_then(rustix::process::Pid::from_raw);
    let Some(pid) = pid else { return task_error("no process") };
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        .map_err(io::Error::from)
        .doing("ending", ballast)?;
    while monitor.0.try_wait().doing("waiting for", ballast)?.is_none() {
        if ending.elapsed() > LIMIT {
            return task_error("SIGTERM did not end the monitor");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let end_ms = ending.elapsed().as_secs_f64() * 1e3;
    Ok(Round { start_ms, end_ms, turn, hold, limit })
}

/// Sends all requests of the load; gives the metrics afterwards.
fn load(socket: &Path) -> Result<Value> {
    for number in 0..REQUESTS {
        get(socket, PATHS[number % PATHS.len()]).doing("asking", socket)?;
    }
    get(socket, "/metrics").doing("asking", socket)
}

/// Processes that wanted a CPU in the last minute, on average; other programs' too.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

/// `GET path`; null where the reply is no JSON.
fn get(socket: &Path, path: &str) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    let body = reply.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
    Ok(serde_json::from_slice(&reply[body..]).unwrap_or(Value::Null))
}
