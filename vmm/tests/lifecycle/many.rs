// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many monitors with disks, network and vsock, side by side and one after another: none is in
//! another's way, and none leaves anything behind.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::guest::Program;
use crate::monitor::{Monitor, kvm};

/// What a test puts into a monitor's folder.
const OURS: [&str; 3] = ["kernel", "stderr", "disk"];

/// Whether TAP interfaces can be made; says so if not.
fn taps() -> bool {
    let there = rustix::process::geteuid().is_root()
        && File::options().read(true).write(true).open("/dev/net/tun").is_ok();
    if !there {
        eprintln!("no root or no /dev/net/tun: guests have no network");
    }
    there
}

/// A monitor whose guest halts, with every device that has a file, a socket or an interface.
fn start(number: usize, taps: bool) -> Monitor {
    Monitor::run(Program::Halt, |dir, command| devices(dir, command, number, taps))
}

fn devices(dir: &Path, command: &mut Command, number: usize, taps: bool) {
    let disk = dir.join("disk");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    command.arg("--disk").arg(format!("path={}", disk.display())).arg("--rng");
    command.arg("--vsock").arg(format!("cid=3,path={}", dir.join("vsock").display()));
    command.arg("--balloon").arg("target=0");
    if taps {
        command.arg("--net").arg(format!("tap={}", tap(number)));
    }
}

/// Names differ from those of another run of these tests on the same machine.
fn tap(number: usize) -> String {
    format!("bl{}t{number}", std::process::id())
}

/// How many of these interfaces the host has.
fn taps_of(numbers: std::ops::Range<usize>) -> usize {
    let list = fs::read_to_string("/proc/net/dev").unwrap();
    let names = list.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    let wanted: Vec<String> = numbers.map(tap).collect();
    names.filter(|name| wanted.iter().any(|tap| tap == name)).count()
}

/// The threads of a monitor, by name.
fn threads(monitor: &Monitor) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", monitor.child.id())).unwrap();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    tasks.flatten().filter_map(name).map(|name| name.trim().to_owned()).collect()
}

/// Nothing is in its folder but what the test put there.
fn assert_only_ours(monitor: &Monitor) {
    for entry in fs::read_dir(monitor.dir.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(OURS.contains(&name.as_str()), "{name} was left behind");
    }
}

#[test]
fn twenty_side_by_side_do_not_disturb_each_other() {
    if !kvm() {
        return;
    }
    let taps = taps();
    let mut monitors: Vec<Monitor> = (0..20).map(|number| start(number, taps)).collect();
    for monitor in &mut monitors {
        assert_eq!(monitor.request("GET", "/metrics", ""), 200);
        // A new thread names itself.
        monitor.wait_for("the threads of the devices", |monitor| {
            let threads = threads(monitor);
            ["block-disk0", "vsock", "entropy"].iter().all(|name| threads.contains(*name))
        });
    }
    if taps {
        assert_eq!(taps_of(0..20), monitors.len());
    }
    // Every other one ends; those that stay still answer.
    for pair in monitors.chunks_mut(2) {
        pair[0].signal(libc::SIGTERM);
        assert_eq!(pair[0].end().code(), Some(0), "{}", pair[0].stderr());
        assert_only_ours(&pair[0]);
        assert_eq!(pair[1].request("GET", "/", ""), 200);
    }
    for monitor in monitors.iter_mut().skip(1).step_by(2) {
        let stop = r#"{"action_type": "InstanceStop"}"#;
        assert_eq!(monitor.request("PUT", "/actions", stop), 204);
        assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
        assert_only_ours(monitor);
    }
    assert_eq!(taps_of(0..20), 0, "interfaces were left behind");
}

#[test]
fn a_hundred_one_after_another_leave_nothing_behind() {
    if !kvm() {
        return;
    }
    let taps = taps();
    // The same disk, socket path and interface each time: what one leaves, the next one meets.
    let shared = tempfile::tempdir().unwrap();
    for round in 0..100 {
        let mut monitor = Monitor::run(Program::Halt, |_, command| {
            devices(shared.path(), command, 100, taps);
        });
        assert_eq!(monitor.request("GET", "/", ""), 200, "round {round}: {}", monitor.stderr());
        monitor.signal(libc::SIGTERM);
        assert_eq!(monitor.end().code(), Some(0), "round {round}: {}", monitor.stderr());
        assert_only_ours(&monitor);
        let left: Vec<_> = fs::read_dir(&shared).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["disk"], "round {round}");
        assert_eq!(taps_of(100..101), 0, "round {round}: an interface was left behind");
    }
}
