// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks, network, vsock and random numbers, used by a real driver: every byte arrives, also while
//! the balloon moves.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::confine::{own_network, own_root};
use harness::guest::Guest;
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::vhost_net;

const MIB: u64 = 1 << 20;

pub(crate) fn image(context: &Context, name: &str, mib: u64) -> Result<PathBuf> {
    let path = context.logs.join(name);
    let file = File::create(&path).map_err(Error::io("creating an image"))?;
    file.set_len(mib * MIB).map_err(Error::io("sizing an image"))?;
    Ok(path)
}

pub(crate) fn drive(id: &str, path: &Path, more: &Value) -> Value {
    let mut drive = json!({ "drive_id": id, "is_root_device": false, "path_on_host": path });
    if let (Some(drive), Some(more)) = (drive.as_object_mut(), more.as_object()) {
        drive.extend(more.clone());
    }
    drive
}

pub(crate) fn with(context: &Context, sections: Value) -> Spec {
    let mut spec = Spec { cpus: 2, ..Spec::new(&context.payload, 256) };
    if let Value::Object(sections) = sections {
        spec.more.extend(sections);
    }
    spec
}

/// Disks of each kind: what is written and flushed is in the file, comes back, and can be
/// discarded; a new image is seen at once.
pub(crate) fn disks(context: &Context) -> Result<()> {
    let paths: Vec<PathBuf> =
        (0..3).map(|n| image(context, &format!("disk{n}"), 32)).collect::<Result<_>>()?;
    let drives = [
        drive("ring", &paths[0], &json!({ "cache_type": "Writeback", "queues": 2 })),
        drive("calls", &paths[1], &json!({ "cache_type": "Writeback", "io_engine": "Sync" })),
        drive("ro", &paths[2], &json!({ "is_read_only": true })),
    ];
    let mut guest = Guest::boot(
        &context.ballast(),
        with(context, json!({ "drives": drives, "entropy": {} })),
        &context.logs,
    )?;
    for (disk, path) in ["/dev/vda", "/dev/vdb"].iter().zip(&paths) {
        guest.agent.command(&format!("disk-write {disk} 24M 7"))?;
        let figures = guest.agent.figures(&format!("disk-verify {disk} 24M 7"))?;
        check_eq!(figures["damaged"], 0);
        // The page cache of the host has it: the guest has flushed.
        let mut page = vec![0; 4096];
        let file = File::open(path).map_err(Error::io("opening the image"))?;
        file.read_exact_at(&mut page, 5 << 20).map_err(Error::io("reading the image"))?;
        check!(page.iter().any(|byte| *byte != 0), "{disk}: nothing has reached the file");
    }
    check!(
        guest.agent.command("disk-write /dev/vdc 1M 1").is_err(),
        "a read-only disk was written"
    );
    let random = guest.agent.command("read /sys/class/misc/hw_random/rng_current")?;
    check!(random.join("").starts_with("virtio_rng"), "{random:?}");

    // A larger image in place of the first.
    let larger = image(context, "larger", 48)?;
    let api = guest.monitor.api().clone();
    api.patch("/drives/ring", &json!({ "drive_id": "ring", "path_on_host": larger }))?;
    guest.agent.command("disk-write /dev/vda 40M 9")?;
    check_eq!(guest.agent.figures("disk-verify /dev/vda 40M 9")?["damaged"], 0);
    let sectors = guest.agent.command("read /sys/block/vda/size")?;
    let sectors = sectors.join("").trim().to_owned();
    check_eq!(sectors, "98304");
    let metrics = api.get("/metrics")?;
    check!(metrics["block_ring"]["write_bytes"].as_u64() >= Some(64 * MIB), "{metrics}");
    check!(metrics["block_ring"]["flush_count"].as_u64() >= Some(2), "{metrics}");
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A file system filled while the balloon goes up and down, then checked by e2fsck.
pub(crate) fn file_system_under_the_balloon(context: &Context) -> Result<()> {
    let path = image(context, "ext4", 96)?;
    run(Command::new(context.payload.path("mke2fs")).args(["-q", "-t", "ext4", "-F"]).arg(&path))?;
    let drives = [drive("data", &path, &json!({ "cache_type": "Writeback" }))];
    let spec = with(context, json!({ "drives": drives }));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    guest.agent.command("disk-mount /dev/vda ext4 /mnt")?;
    for round in 0..4u64 {
        guest.agent.command(&format!("disk-write /mnt/file{round} 16M {round}"))?;
        guest.balloon_to(if round.is_multiple_of(2) { 128 } else { 0 })?;
        for written in 0..=round {
            let verify = format!("disk-verify /mnt/file{written} 16M {written}");
            check_eq!(guest.agent.figures(&verify)?["damaged"], 0);
        }
    }
    guest.agent.command("disk-unmount /mnt")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    run(Command::new(context.payload.path("e2fsck")).args(["-f", "-n"]).arg(&path))
}

/// Streams in both directions, many of them, through the monitor's Unix sockets.
pub(crate) fn vsock(context: &Context) -> Result<()> {
    let path = context.logs.join("v.sock");
    let spec = with(context, json!({ "vsock": { "guest_cid": 3, "uds_path": path } }));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;

    // From the guest to a program here, which sends everything back.
    echo_unix(&path.with_file_name("v.sock_900"))?;
    for round in 0..3 {
        let figures = guest.agent.figures(&format!("vsock-send 900 8M {round}"))?;
        check_eq!((figures["pages"], figures["damaged"]), (2048, 0));
    }
    check!(guest.agent.command("vsock-send 901 4K 1").is_err(), "that port has no listener");

    // From here to the guest, which sends everything back.
    guest.agent.command("vsock-echo 52")?;
    for round in 0..50u32 {
        let mut stream = UnixStream::connect(&path).map_err(Error::io("connecting"))?;
        stream.write_all(b"CONNECT 52\n").map_err(Error::io("greeting"))?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).map_err(Error::io("reading the greeting"))?;
            line.push(byte[0]);
        }
        check!(line.starts_with(b"OK "), "{line:?}");
        let data: Vec<u8> =
            (0..100_000u32).map(|i| (i.wrapping_mul(round + 3) >> 3) as u8).collect();
        let mut writer = stream.try_clone().map_err(Error::io("a second descriptor"))?;
        let sent = data.clone();
        let writer = std::thread::spawn(move || writer.write_all(&sent));
        let mut back = vec![0; data.len()];
        stream.read_exact(&mut back).map_err(Error::io("reading"))?;
        writer
            .join()
            .map_err(|_| Error::Check("the writer panicked".into()))?
            .map_err(Error::io("writing"))?;
        check!(back == data, "round {round}: the data came back changed");
    }
    check_eq!(guest.power_off()?.code(), Some(0));
    check!(!path.exists(), "the socket was left behind");
    Ok(())
}

/// TCP through a TAP, both ways at once; metadata on the same interface, which the TAP does not see.
pub(crate) fn network(context: &Context) -> Result<()> {
    // The monitor creates the TAP, so its address can be set only once the guest has booted.
    let interface =
        json!({ "iface_id": "eth0", "host_dev_name": "btap0", "guest_mac": "06:00:0a:00:00:02" });
    let metadata = json!({ "version": "V2", "network_interfaces": ["eth0"] });
    let sections = json!({ "network-interfaces": [interface], "mmds-config": metadata });
    let mut spec = with(context, sections);
    spec.boot_args = "ip=10.99.0.2::10.99.0.1:255.255.255.0::eth0:off".into();
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    let ip = context.payload.path("ip");
    run(Command::new(&ip).args(["addr", "add", "10.99.0.1/24", "dev", "btap0"]))?;
    run(Command::new(&ip).args(["link", "set", "btap0", "up"]))?;
    echo_tcp("10.99.0.1:7000")?;
    for round in 0..3 {
        let figures = guest.agent.figures(&format!("tcp-send 10.99.0.1:7000 8M {round}"))?;
        check_eq!((figures["pages"], figures["damaged"]), (2048, 0));
    }
    reads_metadata(&mut guest)?;
    let api = guest.monitor.api().clone();
    // Less than the slowest and busiest machine can send: 20 KiB per second.
    let limit = json!({ "bandwidth": { "size": 64 << 10, "refill_time": 3200 } });
    api.patch(
        "/network-interfaces/eth0",
        &json!({ "iface_id": "eth0", "tx_rate_limiter": limit }),
    )?;
    check_eq!(guest.agent.figures("tcp-send 10.99.0.1:7000 256K 9")?["damaged"], 0);
    let metrics = api.get("/metrics")?;
    let net = &metrics["net_eth0"];
    check!(net["tx_bytes_count"].as_u64() >= Some(24 * MIB), "{net}");
    check!(net["tx_rate_limiter_throttled"].as_u64() >= Some(1), "{net}");
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The guest reads what the API sets, with a token of version 2 only.
fn reads_metadata(guest: &mut Guest) -> Result<()> {
    const SERVICE: &str = "169.254.169.254:80";
    let api = guest.monitor.api().clone();
    let hostname = json!({ "latest": { "meta-data": { "hostname": "kestrel" } } });
    api.put("/mmds", &hostname)?;
    let get = format!("http GET {SERVICE} /latest/meta-data/hostname");
    let refused = guest.agent.command(&get)?;
    check!(refused[0].starts_with("HTTP/1.1 401"), "without a token: {refused:?}");
    let invalid = guest.agent.command(&format!("{get} X-metadata-token:made-up"))?;
    check!(invalid[0].starts_with("HTTP/1.1 401"), "with no token of ours: {invalid:?}");
    let put = format!("http PUT {SERVICE} /latest/api/token X-metadata-token-ttl-seconds:60");
    let token = guest.agent.command(&put)?;
    check!(token[0].starts_with("HTTP/1.1 200"), "{token:?}");
    let token = token.last().cloned().unwrap_or_default();
    let get = format!("{get} X-metadata-token:{token}");
    let read = guest.agent.command(&get)?;
    check_eq!(read.last().map(String::as_str), Some("kestrel"));
    // A change is seen at once.
    api.patch("/mmds", &json!({ "latest": { "meta-data": { "hostname": "merlin" } } }))?;
    let read = guest.agent.command(&get)?;
    check_eq!(read.last().map(String::as_str), Some("merlin"));
    let metrics = api.get("/metrics")?;
    check!(metrics["mmds"]["rx_accepted"].as_u64() > Some(0), "{}", metrics["mmds"]);
    Ok(())
}

/// The same drivers in Debian's kernel, all devices in one guest, through a balloon that moves; a
/// second network interface by passt, which ends in the middle.
pub(crate) fn debians_kernel_uses_them_all(context: &Context) -> Result<()> {
    own_network()?;
    own_root()?;
    let ip = context.payload.path("ip");
    // What passt takes for the way to the world.
    for words in [
        "link add out0 type veth peer name out1",
        "addr add 192.0.2.1/24 dev out0",
        "link set out0 up",
        "link set out1 up",
        "link set lo up",
        "route add default via 192.0.2.254",
    ] {
        run(Command::new(&ip).args(words.split(' ')))?;
    }
    let path = image(context, "ext4", 96)?;
    run(Command::new(context.payload.path("mke2fs")).args(["-q", "-t", "ext4", "-F"]).arg(&path))?;
    let dir = tempfile::tempdir().map_err(Error::io("creating a folder"))?;
    let socket = dir.path().join("v.sock");
    let spec = with(
        context,
        json!({
            "drives": [drive("data", &path, &json!({ "cache_type": "Writeback", "queues": 2 }))],
            "network-interfaces": [
                { "iface_id": "eth0", "host_dev_name": "btap0" },
                { "iface_id": "eth1", "backend": "User" },
                vhost_net::interface(),
            ],
            "vsock": { "guest_cid": 3, "uds_path": socket },
            "entropy": {},
        }),
    );
    let stock = Spec::debian_devices(&context.payload, 256);
    let spec = Spec { kernel: stock.kernel, initrd: stock.initrd, ..spec };
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    run(Command::new(&ip).args(["addr", "add", "10.99.0.1/24", "dev", "btap0"]))?;
    run(Command::new(&ip).args(["link", "set", "btap0", "up"]))?;
    // This kernel configures no interface by itself.
    for words in [
        "addr add 10.99.0.2/24 dev eth0",
        "link set eth0 up",
        "addr add 10.0.2.15/24 dev eth1",
        "link set eth1 up",
        "route add 192.0.2.0/24 via 10.0.2.2",
    ] {
        guest.agent.command(&format!("run /usr/bin/ip {words}"))?;
    }
    echo_tcp("10.99.0.1:7000")?;
    echo_tcp("192.0.2.1:7001")?;
    echo_unix(&socket.with_file_name("v.sock_900"))?;
    guest.agent.command("disk-mount /dev/vda ext4 /mnt")?;
    for round in 0..2u64 {
        guest.agent.command(&format!("disk-write /mnt/file{round} 16M {round}"))?;
        guest.balloon_to(if round == 0 { 96 } else { 0 })?;
        for command in [
            format!("disk-verify /mnt/file{round} 16M {round}"),
            format!("tcp-send 10.99.0.1:7000 8M {round}"),
            format!("tcp-send 192.0.2.1:7001 4M {round}"),
            format!("vsock-send 900 8M {round}"),
        ] {
            let figures = guest.agent.figures(&command)?;
            check!(figures["pages"] > 0 && figures["damaged"] == 0, "{command}: {figures:?}");
        }
    }
    let random = guest.agent.command("read /sys/class/misc/hw_random/rng_current")?;
    check!(random.join("").starts_with("virtio_rng"), "{random:?}");
    passt_ends(&mut guest)?;
    vhost_net::moves_frames_whatever_happens_to_memory(context, &mut guest)?;
    guest.agent.command("disk-unmount /mnt")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    run(Command::new(context.payload.path("e2fsck")).args(["-f", "-n"]).arg(&path))?;
    vhost_net::a_killed_monitor_leaves_nothing_behind(context)
}

/// The guest is notified that its link is down; nothing else changes.
fn passt_ends(guest: &mut Guest) -> Result<()> {
    let carrier = "read /sys/class/net/eth1/carrier";
    check_eq!(guest.agent.command(carrier)?.join(""), "1");
    let children = format!("/proc/{}/task", guest.monitor.pid());
    let mut ended = 0;
    for task in fs::read_dir(&children).map_err(Error::io(children.clone()))?.flatten() {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            kill_process(pid, Signal::KILL).map_err(|e| Error::io("ending passt")(e.into()))?;
            ended += 1;
        }
    }
    check_eq!(ended, 1);
    for _ in 0..100 {
        if guest.agent.command(carrier)?.join("") == "0" {
            let figures = guest.agent.figures("tcp-send 10.99.0.1:7000 1M 3")?;
            check_eq!(figures["damaged"], 0);
            let log = guest.monitor.stderr();
            check!(log.contains("passt has ended"), "{log}");
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err(Error::Check("passt has ended, and the guest's link is up".into()))
}

/// Sends back what comes to a TCP address.
pub(crate) fn echo_tcp(address: &str) -> Result<()> {
    let service = TcpListener::bind(address).map_err(Error::io("listening"))?;
    std::thread::spawn(move || {
        for stream in service.incoming().flatten() {
            std::thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    Ok(())
}

/// Sends back what comes to a Unix socket.
pub(crate) fn echo_unix(path: &Path) -> Result<()> {
    let service = UnixListener::bind(path).map_err(Error::io("listening"))?;
    std::thread::spawn(move || {
        for stream in service.incoming().flatten() {
            std::thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    Ok(())
}

/// Runs a program of the host; it has to succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(Error::io(&format!("{command:?}")))?;
    check!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
