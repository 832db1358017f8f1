// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--net user`: passt as a process beside the monitor. Needs passt installed and a default route;
//! without them each test but the last says so and does nothing.

use std::fs;
use std::process::Command;

use crate::guest::Program;
use crate::monitor::{Monitor, kvm};

fn usable() -> bool {
    let installed = Command::new("passt").arg("--version").output().is_ok();
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let routed = routes.lines().any(|line| line.split_whitespace().nth(1) == Some("00000000"));
    if !installed || !routed {
        eprintln!("passt is not installed, or there is no default route: nothing is tested");
    }
    kvm() && installed && routed
}

/// A monitor with an interface over passt, which runs.
fn start() -> (Monitor, i32) {
    let mut monitor = Monitor::run(Program::Halt, |_, command| {
        command.args(["--net", "user,mtu=9000"]);
    });
    assert_eq!(monitor.request("GET", "/", ""), 200, "{}", monitor.stderr());
    let mut passt = None;
    monitor.wait_for("passt", |monitor| {
        passt = child(monitor);
        passt.is_some()
    });
    (monitor, passt.unwrap())
}

/// The child of the monitor whose name starts with `passt`: it may have executed `passt.avx2`.
fn child(monitor: &Monitor) -> Option<i32> {
    let parent = monitor.child.id().to_string();
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (start, rest) = stat.rsplit_once(')')?;
        let ours = rest.split_whitespace().nth(1) == Some(parent.as_str());
        let named = start.split_once('(')?.1.starts_with("passt");
        (ours && named).then(|| entry.file_name().to_string_lossy().parse().ok())?
    })
}

/// Whether the process is there, and no zombie.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn passt_ends_with_the_monitor() {
    if !usable() {
        return;
    }
    let (mut monitor, passt) = start();
    monitor.signal(libc::SIGTERM);
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
    assert!(!runs(passt), "passt was left behind");

    let (mut monitor, passt) = start();
    monitor.signal(libc::SIGKILL);
    monitor.end();
    monitor.wait_for("passt's end after SIGKILL", |_| !runs(passt));
}

#[test]
fn the_end_of_passt_is_told_and_the_guest_runs_on() {
    if !usable() {
        return;
    }
    let (mut monitor, passt) = start();
    // SAFETY: sends a signal to the monitor's child, which the monitor has not waited for.
    assert_eq!(unsafe { libc::kill(passt, libc::SIGKILL) }, 0);
    monitor.wait_for("a line in the log", |monitor| {
        let log = monitor.stderr();
        log.contains("passt has ended") && log.contains("signal: 9")
    });
    assert!(!runs(passt));
    assert_eq!(monitor.request("GET", "/", ""), 200);
    monitor.signal(libc::SIGTERM);
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
}

#[test]
fn a_host_without_passt_is_told_what_to_install() {
    if !kvm() {
        return;
    }
    let mut monitor = Monitor::run(Program::Halt, |dir, command| {
        command.args(["--net", "user"]).env("PATH", dir);
    });
    assert_ne!(monitor.end().code(), Some(0));
    let log = monitor.stderr();
    assert!(log.contains("passt is not installed") && log.contains("apt-get"), "{log}");
}
