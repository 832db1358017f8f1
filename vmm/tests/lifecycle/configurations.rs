// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each configuration in `resources/` starts a machine, with a guest of a few instructions in place
//! of Debian's kernel. Those with a network need the right to create a TAP.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::guest::Program;
use crate::monitor::{Monitor, ballast, kvm};

/// The monitor with configuration `name`, in a folder with what `cargo xtask rootfs debian` makes.
fn start(name: &str, more: &[&str]) -> Monitor {
    let resources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources");
    let config = resources.canonicalize().unwrap().join(name).with_extension("json");
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("target/debian");
    fs::create_dir_all(&files).unwrap();
    fs::write(files.join("vmlinux"), Program::Halt.image()).unwrap();
    File::create(files.join("rootfs.ext4")).unwrap().set_len(1 << 20).unwrap();
    let mut command = ballast();
    command.current_dir(dir.path()).args(["run", "--api-sock", "api", "--config"]).arg(config);
    command.args(more).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create(dir.path().join("stderr")).unwrap());
    Monitor { child: command.spawn().unwrap(), dir }
}

fn starts(name: &str, more: &[&str]) {
    let mut monitor = start(name, more);
    assert_eq!(monitor.request("GET", "/", ""), 200, "{name}: {}", monitor.stderr());
    assert_eq!(monitor.request("GET", "/metrics", ""), 200, "{name}");
    monitor.signal(libc::SIGTERM);
    assert_eq!(monitor.end().code(), Some(0), "{name}: {}", monitor.stderr());
}

#[test]
fn those_without_a_network_start() {
    if kvm() {
        for name in ["minimal", "dense", "display", "debian-rootless"] {
            starts(name, &[]);
        }
    }
}

#[test]
fn those_with_a_network_start() {
    let own = format!("bc{}", std::process::id());
    let created = Command::new("ip").args(["tuntap", "add", &own, "mode", "tap"]).status();
    if !created.is_ok_and(|status| status.success()) {
        return eprintln!("no TAP can be created: nothing is tested");
    }
    if kvm() {
        // Not the interface that the files name: somebody may work in a guest of that.
        for name in ["network", "debian"] {
            starts(name, &["--net", &format!("tap={own},id=eth0")]);
        }
    }
    Command::new("ip").args(["link", "delete", &own]).status().unwrap();
}
