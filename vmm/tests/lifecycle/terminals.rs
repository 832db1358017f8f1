// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Foreground, background and raw mode, on a real pseudo-terminal with a session of its own, as a
//! shell would have it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::guest::Program;
use crate::monitor::{Monitor, kvm};

/// Both ends of a terminal.
struct Terminal {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Terminal {
    fn open() -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = rustix::fs::open(&*name, flags, Mode::empty()).unwrap();
        Self { ours, theirs }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.theirs).unwrap().local_modes.contains(LocalModes::ICANON)
    }
}

/// Makes `command` the leader of a session whose terminal is its standard input.
fn lead_session(command: &mut Command) {
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Starts a monitor on `terminal`, by `script` of a shell that leads the session; without one the
/// monitor leads it. In the script, `"$0" "$@"` is the monitor.
fn start(terminal: &Terminal, script: Option<&str>) -> Monitor {
    let stream = || Stdio::from(terminal.theirs.try_clone().unwrap());
    Monitor::run(Program::Echo, |dir, command| {
        if let Some(script) = script {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]).arg(command.get_program()).args(command.get_args());
            shell.stderr(File::create(dir.join("stderr")).unwrap());
            *command = shell;
        }
        command.stdin(stream()).stdout(stream());
        lead_session(command);
    })
}

/// Types `text`, and reads until it has come back.
fn echoes(terminal: &Terminal, text: &str) {
    let mut ours = File::from(terminal.ours.try_clone().unwrap());
    ours.write_all(text.as_bytes()).unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 64];
    while !String::from_utf8_lossy(&seen).contains(text) {
        let count = ours.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..count]);
    }
}

fn stop(monitor: &mut Monitor) {
    assert_eq!(monitor.request("PUT", "/actions", r#"{"action_type": "InstanceStop"}"#), 204);
    let socket = monitor.socket();
    monitor.wait_for("the end", |_| !socket.exists());
}

#[test]
fn in_the_foreground_the_guest_has_the_terminal_until_the_end() {
    if !kvm() {
        return;
    }
    let terminal = Terminal::open();
    let mut monitor = start(&terminal, None);
    monitor.wait_for("raw mode", |_| terminal.is_raw());
    // Ctrl-C is a key like any other: the guest sends it back.
    echoes(&terminal, "hello\u{3}world");
    monitor.signal(libc::SIGTERM);
    assert_eq!(monitor.end().code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn a_signal_to_continue_changes_nothing_for_who_was_not_stopped() {
    if !kvm() {
        return;
    }
    let terminal = Terminal::open();
    let mut monitor = start(&terminal, None);
    monitor.wait_for("raw mode", |_| terminal.is_raw());
    for _ in 0..3 {
        monitor.signal(libc::SIGCONT);
        echoes(&terminal, "on");
        assert_eq!(monitor.request("GET", "/", ""), 200);
    }
    monitor.signal(libc::SIGUSR1);
    assert_eq!(monitor.end().code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn ctrl_a_x_ends_the_monitor() {
    if !kvm() {
        return;
    }
    let terminal = Terminal::open();
    let mut monitor = start(&terminal, None);
    monitor.wait_for("raw mode", |_| terminal.is_raw());
    File::from(terminal.ours.try_clone().unwrap()).write_all(b"\x01x").unwrap();
    assert_eq!(monitor.end().code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn in_the_background_the_terminal_is_left_alone_until_it_is_ours() {
    if !kvm() {
        return;
    }
    let terminal = Terminal::open();
    let mut monitor = start(&terminal, Some("set -m; \"$0\" \"$@\" & read line; fg"));
    assert_eq!(monitor.request("GET", "/", ""), 200);
    assert!(!terminal.is_raw());
    // The shell is in the foreground and gets the line, and then hands the terminal over.
    File::from(terminal.ours.try_clone().unwrap()).write_all(b"now\n").unwrap();
    monitor.wait_for("raw mode", |_| terminal.is_raw());
    echoes(&terminal, "typed to the guest");
    stop(&mut monitor);
    monitor.end();
    assert!(!terminal.is_raw());
}

#[test]
fn an_orphaned_group_runs_without_input() {
    if !kvm() {
        return;
    }
    let terminal = Terminal::open();
    let script = "( set -m; \"$0\" \"$@\" & ); read line";
    let mut monitor = start(&terminal, Some(script));
    assert_eq!(monitor.request("GET", "/", ""), 200);
    assert_eq!(monitor.request("PATCH", "/vm", r#"{"state": "Paused"}"#), 204);
    assert!(!terminal.is_raw());
    stop(&mut monitor);
    assert!(!terminal.is_raw());
}
