// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--net tap=…,vhost=…`: a host without vhost-net is told so, or does without. Needs the rights to
//! create a TAP and to mount.

use std::path::Path;
use std::process::Command;

use crate::guest::Program;
use crate::monitor::{Monitor, ballast, kvm};

/// Whether this host has what the tests need; `number` is different in each, as they run at the same
/// time.
fn usable(number: u8) -> bool {
    let name = format!("bu{number}x{}", std::process::id());
    let succeeds = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
    };
    let taps = succeeds("ip", &["tuntap", "add", &name, "mode", "tap"])
        && succeeds("ip", &["link", "delete", &name]);
    let mounts = succeeds("unshare", &["--mount", "true"]);
    if !taps || !mounts {
        eprintln!("no TAP can be created, or nothing be mounted: nothing is tested");
    }
    kvm() && taps && mounts
}

/// A folder /dev of the monitor's own: without vhost-net, or with one that it may not open.
#[derive(Debug, Clone, Copy)]
enum Devices {
    Missing,
    Forbidden,
}

/// What keeps a monitor from vhost-net, and the cause that it names.
const UNUSABLE: [(Devices, &str); 2] =
    [(Devices::Missing, "No such file"), (Devices::Forbidden, "Permission denied")];

/// The monitor with other devices than the host's. Root may open every file, unless it is without the
/// capability for that.
fn ballast_with(devices: Devices) -> Command {
    let its_own = match devices {
        Devices::Missing => "",
        Devices::Forbidden => "mknod -m 0 /mnt/vhost-net c 10 238",
    };
    let script = format!(
        "set -e; mount -t tmpfs none /mnt; mkdir /mnt/net; {its_own}
        cp -a /dev/kvm /dev/null /dev/urandom /mnt; cp -a /dev/net/tun /mnt/net
        mount --move /mnt /dev
        exec setpriv --bounding-set -dac_override,-dac_read_search -- \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_ballast")]);
    command
}

fn start(command: Command, number: u8, choice: &str) -> Monitor {
    let name = format!("bv{number}x{}", std::process::id());
    Monitor::run_by(command, Program::Halt, |_, command| {
        command.args(["--log-level", "info", "--net", &format!("tap={name},vhost={choice}")]);
    })
}

#[test]
fn on_says_what_is_missing() {
    if !usable(0) {
        return;
    }
    for (number, (devices, cause)) in (0..).zip(UNUSABLE) {
        let mut monitor = start(ballast_with(devices), number, "on");
        assert_ne!(monitor.end().code(), Some(0));
        let log = monitor.stderr();
        assert!(log.contains("/dev/vhost-net") && log.contains(cause), "{log}");
        assert!(log.contains("load the module `vhost_net` or grant access to it"), "{log}");
    }
}

#[test]
fn auto_does_without() {
    if !usable(1) {
        return;
    }
    for (number, (devices, cause)) in (2..).zip(UNUSABLE) {
        let mut monitor = start(ballast_with(devices), number, "auto");
        assert_eq!(monitor.request("GET", "/", ""), 200, "{}", monitor.stderr());
        monitor.wait_for("a line in the log", |monitor| {
            let log = monitor.stderr();
            let line = log.lines().find(|line| line.contains("no vhost-net"));
            line.is_some_and(|line| line.contains("WARN") && line.contains(cause))
        });
        monitor.signal(libc::SIGTERM);
        assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
    }
}

#[test]
fn a_host_that_has_it_lets_it_move_the_frames() {
    if !usable(2) || !Path::new("/dev/vhost-net").exists() {
        return;
    }
    for (number, choice) in [(4, "on"), (5, "auto")] {
        let mut monitor = start(ballast(), number, choice);
        assert_eq!(monitor.request("GET", "/", ""), 200, "{}", monitor.stderr());
        monitor.wait_for("a line in the log", |monitor| {
            monitor.stderr().contains("vhost-net moves the frames")
        });
        monitor.signal(libc::SIGTERM);
        assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
    }
}
