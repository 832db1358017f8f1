// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--net tap=…,vhost=…`: a host without vhost-net is told so, or does without. Needs the right to
//! create a TAP.

use std::path::Path;
use std::process::Command;

use crate::guest::Program;
use crate::monitor::{Monitor, kvm};

fn usable() -> bool {
    let name = format!("bv{}", std::process::id());
    let created = Command::new("ip").args(["tuntap", "add", &name, "mode", "tap"]).status();
    let created = created.is_ok_and(|status| status.success());
    if created {
        Command::new("ip").args(["link", "delete", &name]).status().unwrap();
    } else {
        eprintln!("no TAP can be created: nothing is tested");
    }
    kvm() && created
}

fn start(number: u8, choice: &str) -> Monitor {
    let name = format!("bv{number}x{}", std::process::id());
    Monitor::run(Program::Halt, |_, command| {
        command.args(["--log-level", "info", "--net", &format!("tap={name},vhost={choice}")]);
    })
}

/// Whether there is one. Only root can create a TAP, so it may also use it.
fn host_has_it() -> bool {
    Path::new("/dev/vhost-net").exists()
}

#[test]
fn on_says_what_is_missing() {
    if !usable() {
        return;
    }
    let mut monitor = start(0, "on");
    if host_has_it() {
        assert_eq!(monitor.request("GET", "/", ""), 200, "{}", monitor.stderr());
        monitor.signal(libc::SIGTERM);
        assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
        return;
    }
    assert_ne!(monitor.end().code(), Some(0));
    let log = monitor.stderr();
    assert!(log.contains("/dev/vhost-net") && log.contains("load the module"), "{log}");
}

#[test]
fn auto_does_without() {
    if !usable() {
        return;
    }
    let mut monitor = start(1, "auto");
    assert_eq!(monitor.request("GET", "/", ""), 200, "{}", monitor.stderr());
    let expected = if host_has_it() { "vhost-net moves the frames" } else { "no vhost-net" };
    monitor.wait_for("a line in the log", |monitor| monitor.stderr().contains(expected));
    monitor.signal(libc::SIGTERM);
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
}
