// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench hold`: how long a guest and clients can block the monitor, and the monitor's
//! cost. Natively: the guest requests the longest operations of its devices and floods its serial
//! port, whose reader has stopped, while clients send every request that takes a lock.
//!
//! Each hold is given in wall-clock time and in CPU time of the holding thread. On a quiet machine
//! both must stay below the goal. On a busy one wall-clock time includes other processes, and only
//! the CPU time is meaningful. The monitor's own memory is measured with an idle guest: under load it
//! includes host memory that the guest requests, which budgets limit, and the guest's memory lies in
//! many mappings.
//!
//! - `corpus.rs`: the guest
//! - `own_memory.rs`: the monitor's own memory

mod corpus;
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
    let worst = |of: fn(&Round) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
    let figures = [
        ("hold.event-loop", worst(|round| round.turn.wall_ms), "ms", 5.0),
        ("hold.event-loop-cpu", worst(|round| round.turn.cpu_ms), "ms", 5.0),
        ("hold.device-lock", worst(|round| round.hold.wall_ms), "ms", 5.0),
        ("hold.device-lock-cpu", worst(|round| round.hold.cpu_ms), "ms", 5.0),
        ("hold.sigterm-to-exit", worst(|round| round.end_ms), "ms", 2000.0),
        ("hold.start-to-first-byte", median(rounds.iter().map(|round| round.start_ms)), "ms", 50.0),
        ("hold.anonymous", median(own.iter().map(|own| own.anonymous_mib)), "MiB", 0.3),
        ("hold.resident", median(own.iter().map(|own| own.resident_mib)), "MiB", 4.4),
    ];
    let lines = figures.map(|(name, value, unit, goal)| {
        let verdict = if value <= goal { "met" } else { "short" };
        format!("figure {name} {value:.3} {unit} goal <={goal:.3} {verdict}")
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
        for number in 0..REQUESTS {
            get(&socket, PATHS[number % PATHS.len()]).doing("asking", &socket)?;
        }
        let metrics = get(&socket, "/metrics").doing("asking", &socket)?;
        if metrics["gpu"]["commands"].as_f64().is_some_and(|commands| commands >= COMMANDS) {
            break metrics;
        }
        if loaded.elapsed() > LIMIT {
            return task_error(format!("the guest does not drive its devices: {metrics}"));
        }
    };
    let monitors = &metrics["monitor"];
    println!(
        "GPU commands in {}: holds {} us, of CPU time {}; turns {}, of CPU time {}",
        if in_vcpu { "the vCPU" } else { "the event loop" },
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
    Ok(Round { start_ms, end_ms, turn, hold })
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
