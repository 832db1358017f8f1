// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every way to end a monitor, with any behaviour of its guest and its readers.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Stdio;

use crate::guest::Program;
use crate::monitor::{Monitor, kvm};

/// A pipe whose reader never reads; the write end goes to the monitor.
fn unread_pipe() -> (OwnedFd, Stdio) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    (reader, Stdio::from(writer))
}

#[test]
fn output_that_is_not_read_holds_up_neither_the_api_nor_the_end() {
    if !kvm() {
        return;
    }
    let (_reader, stdout) = unread_pipe();
    let mut monitor = Monitor::run(Program::Flood, |_, command| {
        command.stdout(stdout).stdin(Stdio::piped());
    });
    // The pipe is full soon; then a byte of input for the port whose output stands still.
    for _ in 0..20 {
        monitor.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        assert_eq!(monitor.request("GET", "/", ""), 200);
    }
    assert_eq!(monitor.request("PATCH", "/vm", r#"{"state": "Paused"}"#), 204);
    assert_eq!(monitor.request("PATCH", "/vm", r#"{"state": "Resumed"}"#), 204);
    monitor.signal(libc::SIGTERM);
    assert_eq!(monitor.end().code(), Some(0));
    assert!(monitor.stderr().contains("stopped by SIGTERM"), "{}", monitor.stderr());
    assert!(!monitor.socket().exists());
}

#[test]
fn a_log_that_is_not_read_holds_up_nothing() {
    if !kvm() {
        return;
    }
    let (_reader, stderr) = unread_pipe();
    let mut monitor = Monitor::run(Program::Halt, |_, command| {
        command.stderr(stderr).args(["--log-level", "debug"]);
    });
    for _ in 0..1500 {
        assert_eq!(monitor.request("GET", "/", ""), 200);
    }
    assert_eq!(monitor.request("PUT", "/actions", r#"{"action_type": "InstanceStop"}"#), 204);
    assert_eq!(monitor.end().code(), Some(0));
}

#[test]
fn a_guest_that_spins_is_paused_and_stopped() {
    if !kvm() {
        return;
    }
    let mut monitor = Monitor::run(Program::Spin, |_, _| {});
    for _ in 0..5 {
        assert_eq!(monitor.request("PATCH", "/vm", r#"{"state": "Paused"}"#), 204);
        assert_eq!(monitor.request("PATCH", "/vm", r#"{"state": "Resumed"}"#), 204);
    }
    assert_eq!(monitor.request("PUT", "/actions", r#"{"action_type": "InstanceStop"}"#), 204);
    assert_eq!(monitor.end().code(), Some(0));
}

#[test]
fn a_stop_needs_no_start() {
    let mut monitor = Monitor::run(Program::Halt, |dir, command| {
        let mut without = std::process::Command::new(env!("CARGO_BIN_EXE_ballast"));
        without.arg("--api-sock").arg(dir.join("api"));
        without.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        *command = without;
    });
    assert_eq!(monitor.request("GET", "/", ""), 200);
    monitor.signal(libc::SIGINT);
    // As Firecracker, which does not catch it.
    assert_eq!(monitor.end().signal(), Some(libc::SIGINT));
}

#[test]
fn signals_that_were_ignored_at_the_start_stay_ignored() {
    if !kvm() {
        return;
    }
    let mut monitor = Monitor::run(Program::Halt, |_, command| {
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                    libc::signal(number, libc::SIG_IGN);
                }
                Ok(())
            });
        }
    });
    assert_eq!(monitor.request("GET", "/", ""), 200);
    for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        monitor.signal(number);
        assert_eq!(monitor.request("GET", "/", ""), 200);
    }
    monitor.signal(libc::SIGTERM);
    monitor.end();
    assert!(monitor.stderr().contains("stopped by SIGTERM"), "{}", monitor.stderr());
}

#[test]
fn a_guest_that_resets_itself_ends_the_monitor_with_its_last_words_out() {
    if !kvm() {
        return;
    }
    let mut monitor = Monitor::run(Program::SayAndReset, |dir, command| {
        command.arg("--console").arg(format!("file={}", dir.join("console").display()));
    });
    assert_eq!(monitor.end().code(), Some(0));
    assert!(monitor.stderr().contains("keyboard controller"), "{}", monitor.stderr());
    assert_eq!(std::fs::read(monitor.dir.path().join("console")).unwrap(), b"!");
}

#[test]
fn a_jump_to_the_reset_vector_is_a_reset() {
    if !kvm() {
        return;
    }
    let mut monitor = Monitor::run(Program::JumpToFirmware, |_, _| {});
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
    assert!(monitor.stderr().contains("reset"), "{}", monitor.stderr());
}
