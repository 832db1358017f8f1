// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An interface whose frames the host's kernel moves: no byte is wrong and no frame is lost while
//! memory is given back, compacted and parked; the driver may come and go, and a killed monitor leaves
//! nothing behind.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use harness::guest::{BOOT_LIMIT, EXIT_LIMIT, Guest};
use harness::monitor::{Monitor, pause};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde_json::{Value, json};

use crate::devices::{echo_tcp, run, with};

const TAP: &str = "btap2";
const SEND: &str = "tcp-send 10.97.0.1:7002";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";

/// Registers and a bit of virtio-mmio (virtio 1.3, 4.2.2 and 2.1).
const QUEUE_READY: u64 = 0x44;
const STATUS: u64 = 0x70;
const NEEDS_RESET: u64 = 64;
/// What the log says of a ring that the kernel rejects.
const INVALID: &str = "vhost-net finds a queue to be invalid";

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
    configure_tap(context)?;
    configure(guest)?;
    echo_tcp("10.97.0.1:7002")?;
    sends(guest, "16M", 1)?;
    check_eq!(kernel_threads(guest.monitor.pid())?, 2);
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
    sends(guest, "4M", 3)?;
    breaks_its_rings(guest)
}

/// A driver that gives the kernel rings of garbage: the device needs a reset, the monitor goes on, and
/// the usual driver works afterwards.
fn breaks_its_rings(guest: &mut Guest) -> Result<()> {
    const BUS: &str = "/sys/bus/platform/drivers/virtio-mmio";
    let virtio = virtio_device(guest)?;
    let mut device = String::new();
    for name in guest.agent.command(&format!("list {BUS}"))? {
        // The driver's other entries are no folders.
        let entries = guest.agent.command(&format!("list {BUS}/{name}")).unwrap_or_default();
        if entries.contains(&virtio) {
            device = name;
        }
    }
    guest.agent.command(&format!("write {BUS}/unbind {device}"))?;
    let windows = guest.agent.command("read /proc/iomem")?;
    let window = windows.iter().find(|line| line.ends_with(&device));
    let base = window.and_then(|line| u64::from_str_radix(line.trim().split('-').next()?, 16).ok());
    let base = base.ok_or_else(|| Error::Check(format!("no window of {device}: {windows:?}")))?;

    guest.agent.command("fill rings 64K")?;
    let ring = |guest: &mut Guest, page| {
        Ok::<_, Error>(guest.agent.figures(&format!("where rings {page}"))?["address"])
    };
    let rings = [ring(guest, 0)?, ring(guest, 1)?, ring(guest, 2)?];
    let write = |guest: &mut Guest, offset, value: u64| {
        guest.agent.command(&format!("register-write {} {value}", base + offset)).map(drop)
    };
    let read = |guest: &mut Guest, offset| {
        Ok::<_, Error>(guest.agent.figures(&format!("register-read {}", base + offset))?["value"])
    };
    // The steps of virtio 1.3, 3.1.1 and 4.2.3.2: reset, VIRTIO_F_VERSION_1, one transmit queue.
    for value in [0, 1, 3] {
        write(guest, STATUS, value)?;
    }
    for (offset, value) in [(0x24, 1), (0x20, 1), (STATUS, 11), (0x30, 1), (0x38, 64)] {
        write(guest, offset, value)?;
    }
    for (offset, addr) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
        write(guest, offset, addr & 0xffff_ffff)?;
        write(guest, offset + 4, addr >> 32)?;
    }
    // First with a table where there is no RAM: refused.
    write(guest, 0x84, 1 << 20)?;
    write(guest, QUEUE_READY, 1)?;
    check_eq!(read(guest, QUEUE_READY)?, 0);
    write(guest, 0x84, rings[0] >> 32)?;
    write(guest, QUEUE_READY, 1)?;
    check_eq!(read(guest, QUEUE_READY)?, 1);
    write(guest, STATUS, 15)?;
    wait_for("DEVICE_NEEDS_RESET", || Ok(guest.monitor.stderr().contains(INVALID)))?;
    check_eq!(read(guest, STATUS)?, 15 | NEEDS_RESET);
    check_eq!(guest.monitor.api().get("/metrics")?["net_eth2"]["vhost_queues"], 0);

    guest.agent.command(&format!("write {BUS}/bind {device}"))?;
    guest.agent.command("free rings")?;
    configure(guest)?;
    sends(guest, "4M", 4)
}

/// Kills a monitor while frames move both ways: its TAP and the threads of vhost-net go with it, and
/// another monitor has the kernel process its queues.
pub(crate) fn a_killed_monitor_leaves_nothing_behind(context: &Context) -> Result<()> {
    let mut spec = with(context, json!({ "network-interfaces": [interface()] }));
    spec.boot_args = "ip=10.97.0.2::10.97.0.1:255.255.255.0::eth0:off".into();
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    configure_tap(context)?;
    // The answer is not waited for.
    guest.agent.farewell(&format!("{SEND} 96M 4"))?;
    let sent_both_ways = || Ok(tap_counts()?.is_some_and(|counts| counts[1].min(counts[9]) > 100));
    wait_for("traffic", sent_both_ways)?;
    let (pid, spec) = (guest.monitor.pid(), guest.spec.clone());
    check_eq!(kernel_threads(pid)?, 2);
    // Dropping it kills its monitor.
    drop(guest);
    wait_for("the end of its threads", || Ok(kernel_threads(pid)? == 0))?;
    wait_for("the end of its TAP", || Ok(tap_counts()?.is_none()))?;

    let mut monitor = Monitor::start(&context.ballast(), &spec, &context.logs)?;
    monitor.wait_for_api(EXIT_LIMIT)?;
    let running = json!(4);
    monitor.poll("the next guest's driver", BOOT_LIMIT, |monitor| {
        let metrics = monitor.api().get("/metrics")?;
        Ok((metrics["net_eth2"]["vhost_queues"] == running).then_some(()))
    })
}

fn wait_for(what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !done()? {
        check!(begin.elapsed() < BOOT_LIMIT, "{what}: not within {BOOT_LIMIT:?}");
        std::thread::sleep(pause(begin));
    }
    Ok(())
}

fn configure_tap(context: &Context) -> Result<()> {
    let ip = context.payload.path("ip");
    run(Command::new(&ip).args(["addr", "add", "10.97.0.1/24", "dev", TAP]))?;
    run(Command::new(&ip).args(["link", "set", TAP, "up"]))
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

/// Threads of vhost-net that serve the monitor with this process number, which may have ended.
fn kernel_threads(pid: u32) -> Result<usize> {
    let name = format!("vhost-{pid}\n");
    let files = |path: &Path| fs::read_dir(path).map_err(Error::io("listing threads"));
    // Before Linux 6.4 they are not threads of the monitor.
    let processes = files(Path::new("/proc"))?.flatten().map(|process| process.path().join("task"));
    let tasks = processes.filter_map(|tasks| files(&tasks).ok()).flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    Ok(names.filter(|comm| *comm == name).count())
}

/// Frames that the TAP could not pass on, in either direction.
fn lost_frames() -> Result<u64> {
    let counts = tap_counts()?.ok_or_else(|| Error::Check(format!("there is no {TAP}")))?;
    Ok([2, 3, 10, 11].iter().map(|at| counts[*at]).sum())
}

/// What the kernel counts of the TAP, if there is one: bytes, packets, errors, drops and more for
/// receiving, then the same for sending.
fn tap_counts() -> Result<Option<[u64; 16]>> {
    // /sys shows the interfaces of another network namespace.
    let path = "/proc/thread-self/net/dev";
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let Some(counts) =
        text.lines().find_map(|line| line.trim().strip_prefix(TAP)?.strip_prefix(':'))
    else {
        return Ok(None);
    };
    let counts: Vec<u64> =
        counts.split_whitespace().filter_map(|count| count.parse().ok()).collect();
    counts.try_into().map(Some).map_err(|_| Error::Check(format!("{path}: {text}")))
}
