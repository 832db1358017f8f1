// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many guests with disk, network and vsock, side by side and one after another: none disturbs
//! another, and none leaves anything behind. They take minutes, so they run on request only.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::confine::own_network;
use harness::guest::{EXIT_LIMIT, Guest};
use harness::monitor::Spec;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};
use serde_json::json;

use crate::boot::{files, terminate};
use crate::devices::{drive, echo_tcp, echo_unix, image, run, with};

const SIDE_BY_SIDE: u64 = 20;
const ONE_AFTER_ANOTHER: u64 = 100;
const MEMORY_MIB: u64 = 128;

/// A guest with every device that has a file, a socket or an interface on the host. Its network is
/// 10.98.`number`.0/24, its TAP `many<number>`.
fn spec(context: &Context, number: u64, disk: &Path, socket: &Path) -> Spec {
    let drives = [drive("data", disk, &json!({ "cache_type": "Writeback" }))];
    let sections = json!({
        "drives": drives,
        "network-interfaces": [{ "iface_id": "eth0", "host_dev_name": tap(number) }],
        "vsock": { "guest_cid": 3 + number, "uds_path": socket },
        "entropy": {},
    });
    let boot_args = format!("ip=10.98.{number}.2::10.98.{number}.1:255.255.255.0::eth0:off quiet");
    let memory_mib = Spec::new(&context.payload, MEMORY_MIB).memory_mib;
    Spec { cpus: 1, memory_mib, boot_args, ..with(context, sections) }
}

fn tap(number: u64) -> String {
    format!("many{number}")
}

fn set_up_tap(context: &Context, number: u64) -> Result<()> {
    let (ip, tap) = (context.payload.path("ip"), tap(number));
    run(Command::new(&ip).args(["addr", "add", &format!("10.98.{number}.1/24"), "dev", &tap]))?;
    run(Command::new(&ip).args(["link", "set", &tap, "up"]))
}

/// How many TAPs of these tests there are.
fn taps() -> Result<usize> {
    let list = std::fs::read_to_string("/proc/thread-self/net/dev")
        .map_err(Error::io("reading /proc/net/dev"))?;
    Ok(list.lines().filter(|line| line.trim().starts_with("many")).count())
}

/// The guest's disk, network and vsock carry what is the guest's own.
fn works(guest: &mut Guest, number: u64) -> Result<()> {
    for command in [
        format!("disk-verify /dev/vda 4M {number}"),
        format!("tcp-send 10.98.{number}.1:7000 256K {number}"),
        format!("vsock-send 900 256K {number}"),
    ] {
        let figures = guest.agent.figures(&command)?;
        check!(figures["pages"] > 0 && figures["damaged"] == 0, "guest {number}: {command}");
    }
    Ok(())
}

/// Twenty guests: what each writes to its disk and sends is its own; every other one is ended, by
/// itself or by a signal, and those that stay go on.
pub(crate) fn twenty_side_by_side(context: &Context) -> Result<()> {
    own_network()?;
    let dir = tempfile::tempdir().map_err(Error::io("creating a folder"))?;
    let free_before = host::settled_free()?;
    let mut guests = Vec::new();
    let (mut sockets, mut disks): (Vec<PathBuf>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    for number in 0..SIDE_BY_SIDE {
        let logs = context.logs.join(number.to_string());
        std::fs::create_dir_all(&logs).map_err(Error::io("creating a folder"))?;
        let disk = image(context, &format!("disk{number}"), 8)?;
        let socket = dir.path().join(format!("v{number}"));
        let spec = spec(context, number, &disk, &socket);
        let mut guest = Guest::boot(&context.ballast(), spec, &logs)?;
        set_up_tap(context, number)?;
        echo_tcp(&format!("10.98.{number}.1:7000"))?;
        echo_unix(&dir.path().join(format!("v{number}_900")))?;
        guest.agent.command(&format!("disk-write /dev/vda 4M {number}"))?;
        sockets.push(socket);
        disks.push(disk);
        guests.push(guest);
    }
    check_eq!(host::processes_named("ballast")?.len() as u64, SIDE_BY_SIDE);
    check_eq!(taps()? as u64, SIDE_BY_SIDE);
    for (number, guest) in (0..).zip(&mut guests) {
        works(guest, number)?;
        guest.balloon_to(MEMORY_MIB / 4)?;
    }
    let mut staying = Vec::new();
    for (number, mut guest) in (0u64..).zip(guests) {
        match number % 4 {
            1 => check_eq!(guest.power_off()?.code(), Some(0)),
            3 => {
                terminate(guest.monitor.pid())?;
                check_eq!(guest.monitor.wait_exit(EXIT_LIMIT)?.code(), Some(0));
            }
            _ => staying.push((number, guest)),
        }
    }
    for (number, guest) in &mut staying {
        works(guest, *number)?;
    }
    for (_, guest) in staying {
        check_eq!(guest.power_off()?.code(), Some(0));
    }
    check_eq!(host::processes_named("ballast")?, Vec::<u32>::new());
    check_eq!(taps()?, 0);
    for socket in &sockets {
        check!(!socket.exists(), "{} was left behind", socket.display());
    }
    // Files may lie in memory.
    for disk in disks {
        std::fs::remove_file(&disk).map_err(Error::io("removing a disk"))?;
    }
    check_memory(free_before)
}

/// A hundred guests over the same disk, socket and TAP: each finds what the last one wrote.
pub(crate) fn a_hundred_one_after_another(context: &Context) -> Result<()> {
    own_network()?;
    let dir = tempfile::tempdir().map_err(Error::io("creating a folder"))?;
    let disk = image(context, "disk", 8)?;
    let socket = dir.path().join("v");
    let files_before = files()?;
    let mut free_before = 0;
    for round in 0..ONE_AFTER_ANOTHER {
        let mut guest =
            Guest::boot(&context.ballast(), spec(context, 0, &disk, &socket), &context.logs)?;
        if let Some(last) = round.checked_sub(1) {
            let figures = guest.agent.figures(&format!("disk-verify /dev/vda 1M {last}"))?;
            check_eq!((round, figures["damaged"]), (round, 0));
        }
        guest.agent.command(&format!("disk-write /dev/vda 1M {round}"))?;
        check_eq!(guest.power_off()?.code(), Some(0));
        check!(!socket.exists(), "round {round}: the socket was left behind");
        check_eq!((round, taps()?), (round, 0));
        check_eq!(host::processes_named("ballast")?, Vec::<u32>::new());
        // The first ones fill the host's own caches.
        if round == 4 {
            free_before = host::settled_free()?;
        }
    }
    check_eq!(files()?, files_before);
    check_memory(free_before)
}

/// The host has its memory back, but for its own caches.
fn check_memory(before: u64) -> Result<()> {
    let after = host::settled_free()?;
    check!(after + (64 << 20) > before, "free memory fell from {before} to {after} bytes");
    Ok(())
}
