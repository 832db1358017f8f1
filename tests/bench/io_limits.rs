// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The limits of the same load without a guest: fio on the bare file, iperf3 over a pair of virtual
//! interfaces.

use std::process::{Command, Stdio};
use std::sync::mpsc;

use harness::confine::own_network;
use harness::{Error, Result};
use serde_json::Value;

use crate::Bed;
use crate::io::{PATTERNS, filled};
use crate::io_samples::{Better, Sample};

/// The two ends, the second of which lies in a network of its own.
const ENDS: [(&str, &str); 2] = [("limit0", "10.97.0.1"), ("limit1", "10.97.0.2")];

/// Measures both.
pub(crate) fn measure(bed: &Bed) -> Result<Vec<Sample>> {
    let mut values = disk(bed)?;
    values.extend(network(bed)?);
    for value in &values {
        println!("  limit.{} {:.3} {}", value.name, value.value, value.unit);
    }
    Ok(values)
}

fn disk(bed: &Bed) -> Result<Vec<Sample>> {
    let dir = tempfile::tempdir_in("/dev/shm").map_err(Error::io("creating a folder"))?;
    let path = dir.path().join("file");
    filled(&path, bed.amounts().disk_mib)?;
    let mut values = Vec::new();
    for (name, direction, order, size, depth) in PATTERNS {
        let rw = if order == "random" { format!("rand{direction}") } else { direction.to_owned() };
        let output = done(
            Command::new(bed.payload.path("fio"))
                .args([
                    "--name=limit",
                    "--ioengine=io_uring",
                    "--time_based",
                    "--output-format=json",
                ])
                .arg(format!("--filename={}", path.display()))
                .args([format!("--rw={rw}"), format!("--bs={size}"), format!("--iodepth={depth}")])
                .arg(format!("--runtime={}ms", bed.amounts().fio_ms))
                .current_dir(dir.path()),
        )?;
        let number = |field: &str| number(&output, &format!("/jobs/0/{direction}/{field}"));
        let (value, unit) = if size > 4096 {
            (number("bw_bytes")? / f64::from(1 << 20), "MiB/s")
        } else {
            (number("iops")?, "IOPS")
        };
        values.push(Sample { name: format!("file.{name}"), value, unit, better: Better::More });
    }
    Ok(values)
}

/// The server runs in a network of its own, as a guest does.
fn network(bed: &Bed) -> Result<Vec<Sample>> {
    let ip = bed.payload.path("ip");
    let seconds = bed.amounts().iperf_s.to_string();
    let [(near, near_address), (far, far_address)] = ENDS;
    let (to_server, ready) = mpsc::channel::<()>();
    let (to_us, started) = mpsc::channel();
    let (ip_there, iperf_there) = (ip.clone(), bed.payload.path("iperf3"));
    let server = std::thread::spawn(move || -> Result<()> {
        own_network()?;
        // SAFETY: asks for the calling thread's number; no memory is involved.
        let thread = unsafe { libc::gettid() };
        let _ = to_us.send(thread);
        // An error of the other side drops its end.
        if ready.recv().is_err() {
            return Ok(());
        }
        done(Command::new(&ip_there).args([
            "addr",
            "add",
            &format!("{far_address}/24"),
            "dev",
            far,
        ]))?;
        done(Command::new(&ip_there).args(["link", "set", far, "up"]))?;
        let mut server = Command::new(iperf_there)
            .args(["-s", "-B", far_address])
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::io("starting iperf3"))?;
        // Until the measurement is over.
        let _ = ready.recv();
        server.kill().and_then(|()| server.wait()).map_err(Error::io("ending iperf3")).map(drop)
    });
    let measured = (|| {
        let thread = started.recv().map_err(|_| Error::Check("no network for iperf3".into()))?;
        let add = ["link", "add", near, "type", "veth", "peer", "name", far];
        done(Command::new(&ip).args(add))?;
        done(Command::new(&ip).args(["link", "set", far, "netns", &thread.to_string()]))?;
        done(Command::new(&ip).args(["addr", "add", &format!("{near_address}/24"), "dev", near]))?;
        done(Command::new(&ip).args(["link", "set", near, "up"]))?;
        let _ = to_server.send(());
        let mut values = Vec::new();
        for (name, reverse) in [("send", None), ("receive", Some("-R"))] {
            // A client whose connection is refused says so in its report, and ends well.
            let bits = retried(|| {
                let report = done(
                    Command::new(bed.payload.path("iperf3"))
                        .args(["-c", far_address, "-t", &seconds, "-J"])
                        .args(reverse),
                )?;
                number(&report, "/end/sum_received/bits_per_second")
            })?;
            let value = bits / 8.0 / f64::from(1 << 20);
            let name = format!("veth.{name}");
            values.push(Sample { name, value, unit: "MiB/s", better: Better::More });
        }
        Ok(values)
    })();
    drop(to_server);
    let ended = server.join().map_err(|_| Error::Check("iperf3's thread panicked".into()))?;
    // Its peer goes with it; a process that still holds the network would keep both.
    let _ = done(Command::new(&ip).args(["link", "delete", near]));
    let values = measured?;
    ended?;
    Ok(values)
}

/// The server takes a while to listen.
fn retried<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..20 {
        if let Ok(done) = attempt() {
            return Ok(done);
        }
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    attempt()
}

fn number(output: &[u8], pointer: &str) -> Result<f64> {
    // fio writes warnings in front of its report.
    let start = output.iter().position(|byte| *byte == b'{').unwrap_or(0);
    let report: Value = serde_json::from_slice(&output[start..])
        .map_err(|error| Error::Check(format!("not a report: {error}")))?;
    let number = report.pointer(pointer).and_then(Value::as_f64);
    number.ok_or_else(|| Error::Check(format!("no {pointer} in {report}")))
}

/// Runs a program of the host; it has to succeed. Gives its output.
pub(crate) fn done(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().map_err(Error::io(format!("{command:?}")))?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    harness::check!(output.status.success(), "{command:?}: {}{errors}", output.status);
    Ok(output.stdout)
}
