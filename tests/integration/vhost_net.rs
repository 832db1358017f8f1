// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An interface whose frames the host's kernel moves: no byte is wrong and no frame is lost while
//! memory is given back, compacted and parked; and the driver may come and go.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::guest::Guest;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde_json::{Value, json};

use crate::devices::{echo_tcp, run};

const TAP: &str = "btap2";
const SEND: &str = "tcp-send 10.97.0.1:7002";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";

/// The interface `eth2`: two pairs of queues by vhost-net.
pub(crate) fn interface() -> Value {
    json!({ "iface_id": "eth2", "host_dev_name": TAP, "queues": 2, "vhost": "On" })
}

/// How often memory is taken from under the traffic, at most: frames hardly move while most of it is
/// parked, and on a slow machine they would never all arrive.
const ROUNDS: u32 = 3;

/// The whole test, in a guest that has booted with the interface and two CPUs.
pub(crate) fn moves_frames_whatever_happens_to_memory(
    context: &Context,
    guest: &mut Guest,
) -> Result<()> {
    let ip = context.payload.path("ip");
    run(Command::new(&ip).args(["addr", "add", "10.97.0.1/24", "dev", TAP]))?;
    run(Command::new(&ip).args(["link", "set", TAP, "up"]))?;
    configure(guest)?;
    echo_tcp("10.97.0.1:7002")?;
    sends(guest, "16M", 1)?;
    check_eq!(kernel_threads(guest)?, 2);
    let api = guest.monitor.api().clone();
    let net = &api.get("/metrics")?["net_eth2"];
    // Two pairs, and not a frame of theirs through the monitor.
    check_eq!((&net["vhost_queues"], &net["tx_packets_count"]), (&json!(4), &json!(0)));

    let lost = lost_frames()?;
    let done = AtomicBool::new(false);
    let rounds = std::thread::scope(|threads| {
        let memory = threads.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while rounds == 0 || rounds < ROUNDS && !done.load(Ordering::Relaxed) {
                for (method, path, body) in [
                    ("PUT", "/memory/park", json!({ "floor_mib": 0 })),
                    ("PATCH", "/balloon", json!({ "amount_mib": 64 })),
                    ("PUT", "/memory/compact", json!({})),
                    ("PATCH", "/vm", json!({ "state": "Paused" })),
                    ("PATCH", "/vm", json!({ "state": "Resumed" })),
                    ("PUT", "/memory/unpark", json!({})),
                    ("PATCH", "/balloon", json!({ "amount_mib": 0 })),
                ] {
                    let answer = api.request(method, path, Some(&body.to_string()))?;
                    check!(answer.status < 300, "{method} {path}: {}", answer.text());
                }
                rounds += 1;
            }
            Ok(rounds)
        });
        let sent = sends(guest, "48M", 2);
        done.store(true, Ordering::Relaxed);
        let rounds = memory.join().map_err(|_| Error::Check("a thread panicked".into()))?;
        sent.and(rounds)
    })?;
    println!("{rounds} rounds of parking, balloon and compaction");
    check_eq!(lost_frames()?, lost);

    // A limit is refused, with the reason.
    let limit = json!({ "bandwidth": { "size": 1 << 20, "refill_time": 100 } });
    let update = json!({ "iface_id": "eth2", "rx_rate_limiter": limit }).to_string();
    let answer = api.request("PATCH", "/network-interfaces/eth2", Some(&update))?;
    check!(answer.status == 400 && answer.text().contains("vhost"), "{}", answer.text());

    // The driver leaves, and comes back.
    let device = virtio_device(guest)?;
    guest.agent.command(&format!("write {DRIVER}/unbind {device}"))?;
    check_eq!(api.get("/metrics")?["net_eth2"]["vhost_queues"], 0);
    guest.agent.command(&format!("write {DRIVER}/bind {device}"))?;
    configure(guest)?;
    sends(guest, "4M", 3)
}

fn configure(guest: &mut Guest) -> Result<()> {
    for words in ["addr add 10.97.0.2/24 dev eth2", "link set eth2 up"] {
        guest.agent.command(&format!("run /usr/bin/ip {words}"))?;
    }
    Ok(())
}

/// The name that the guest's kernel has for the device of `eth2`.
fn virtio_device(guest: &mut Guest) -> Result<String> {
    let names = guest.agent.command(&format!("list {DRIVER}"))?;
    let devices = names.iter().flat_map(|line| line.split_whitespace());
    for device in devices.filter(|name| name.starts_with("virtio")) {
        let interfaces = guest.agent.command(&format!("list {DRIVER}/{device}/net"))?;
        if interfaces.join(" ").contains("eth2") {
            return Ok(device.to_owned());
        }
    }
    Err(Error::Check(format!("no device of the driver has eth2: {names:?}")))
}

/// Sends `size` to the host, which sends it back: it arrives as it left.
fn sends(guest: &mut Guest, size: &str, seed: u32) -> Result<()> {
    let figures = guest.agent.figures(&format!("{SEND} {size} {seed}"))?;
    check!(figures["pages"] > 0 && figures["damaged"] == 0, "{figures:?}");
    Ok(())
}

/// Threads of vhost-net that belong to the monitor.
fn kernel_threads(guest: &Guest) -> Result<usize> {
    let tasks = format!("/proc/{}/task", guest.monitor.pid());
    let tasks = fs::read_dir(&tasks).map_err(Error::io(tasks.clone()))?.flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    Ok(names.filter(|name| name.starts_with("vhost-")).count())
}

/// Frames that the TAP could not pass on, in either direction.
fn lost_frames() -> Result<u64> {
    // /sys shows the interfaces of another network namespace.
    let path = "/proc/thread-self/net/dev";
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let counts = text.lines().find_map(|line| line.trim().strip_prefix(TAP)?.strip_prefix(':'));
    let counts: Vec<u64> = counts
        .into_iter()
        .flat_map(str::split_whitespace)
        .map(|count| count.parse().map_err(|e| Error::Check(format!("{path}: {e}: {text}"))))
        .collect::<Result<_>>()?;
    // Bytes, packets, errors, drops and more for receiving, then the same for sending.
    check_eq!(counts.len(), 16);
    Ok([2, 3, 10, 11].iter().map(|at| counts[*at]).sum())
}
