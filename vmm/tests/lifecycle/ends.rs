// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every way to end a monitor, with any behaviour of its guest and its readers.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Stdio;

use crate::guest::Program;
use crate::monitor::{LIMIT, Monitor, ballast, kvm};

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

/// Keeps one thread of the monitor from running, and no other: like a thread that waits forever.
/// What ends the process ends this too.
fn hold_main_thread(monitor: &Monitor) {
    let pid = i32::try_from(monitor.child.id()).unwrap();
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: traces a child of ours; neither request reads or writes memory of this process.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, null, null) };
    assert_eq!(seized, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: as above.
    let interrupted = unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, pid, null, null) };
    assert_eq!(interrupted, 0, "{}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: the status is a variable of this function.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) }, pid);
    assert!(libc::WIFSTOPPED(status), "{status:#x}");
}

#[test]
fn a_main_thread_that_hangs_does_not_outlive_a_signal() {
    if !kvm() {
        return;
    }
    let mut monitor = Monitor::run(Program::Spin, |dir, command| {
        command.arg("--vsock").arg(format!("cid=3,path={}", dir.join("vsock").display()));
        command.arg("--gpu").arg(format!("640x480,vnc={}", dir.join("vnc").display()));
    });
    assert_eq!(monitor.request("GET", "/", ""), 200);
    let sockets = ["vsock", "vnc"].map(|name| monitor.dir.path().join(name));
    assert!(sockets.iter().all(|socket| socket.exists()));
    hold_main_thread(&monitor);
    monitor.signal(libc::SIGTERM);
    assert_eq!(monitor.end().code(), Some(0));
    let said = monitor.stderr();
    assert!(said.contains("stopped by SIGTERM (orderly shutdown did not finish"), "{said}");
    assert!(!monitor.socket().exists());
    assert!(!sockets.iter().any(|socket| socket.exists()), "a device's socket was left behind");
}

#[test]
fn a_second_signal_does_not_wait_for_a_main_thread_that_hangs() {
    if !kvm() {
        return;
    }
    let mut monitor = Monitor::run(Program::Halt, |_, command| {
        let socket = command.get_args().last().unwrap().to_owned();
        *command = ballast();
        command.arg("--api-sock").arg(socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    });
    assert_eq!(monitor.request("GET", "/", ""), 200);
    hold_main_thread(&monitor);
    let mut ended = None;
    monitor.wait_for("its end", |monitor| {
        // One signal of a kind waits at a time: the next is sent once it has been taken.
        if ended.is_none() {
            monitor.signal(libc::SIGTERM);
        }
        ended = monitor.child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().signal(), Some(libc::SIGTERM), "in Firecracker's place");
}

#[test]
fn a_stop_needs_no_start() {
    let mut monitor = Monitor::run(Program::Halt, |dir, command| {
        let mut without = ballast();
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
fn any_signal_that_would_end_a_process_ends_it_in_order() {
    if !kvm() {
        return;
    }
    for (number, name) in [
        (libc::SIGUSR1, "SIGUSR1"),
        (libc::SIGALRM, "SIGALRM"),
        (libc::SIGXCPU, "SIGXCPU"),
        (libc::SIGPWR, "SIGPWR"),
    ] {
        let mut monitor = Monitor::run(Program::Halt, |_, _| {});
        assert_eq!(monitor.request("GET", "/", ""), 200);
        monitor.signal(number);
        assert_eq!(monitor.end().code(), Some(0), "{name}");
        assert!(monitor.stderr().contains(&format!("stopped by {name}")), "{}", monitor.stderr());
        assert!(!monitor.socket().exists(), "{name}");
    }
}

#[test]
fn a_limit_on_file_sizes_loses_output_and_not_the_machine() {
    if !kvm() {
        return;
    }
    const MOST: libc::rlim_t = 10_000;
    let mut monitor = Monitor::run(Program::Flood, |dir, command| {
        command.arg("--console").arg(format!("file={}", dir.join("console").display()));
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: MOST, rlim_max: MOST };
                libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit);
                Ok(())
            });
        }
    });
    let path = monitor.dir.path().join("console");
    let size = || std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    monitor.wait_for("the limit", |_| size() == MOST);
    // The next byte is one too many, and so is each of the many behind it.
    for _ in 0..20 {
        assert_eq!(monitor.request("GET", "/", ""), 200);
    }
    monitor.signal(libc::SIGTERM);
    assert_eq!(monitor.end().code(), Some(0));
}

/// Lets `command` have at most `count` descriptors.
fn limit_descriptors(command: &mut std::process::Command, count: libc::rlim_t) {
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            Ok(())
        });
    }
}

#[test]
fn without_descriptors_a_client_is_answered_or_finds_the_monitor_ended() {
    // From too few for anything to enough for the API.
    for count in 8..24 {
        let mut monitor = Monitor::run(Program::Halt, |dir, command| {
            let mut without = ballast();
            without.arg("--api-sock").arg(dir.join("api"));
            without.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            limit_descriptors(&mut without, count);
            *command = without;
        });
        let mut answer = None;
        monitor.wait_for("an answer or the end", |monitor| {
            let ended = monitor.child.try_wait().unwrap().is_some();
            answer = UnixStream::connect(monitor.socket()).ok();
            ended || answer.is_some()
        });
        if let Some(mut stream) = answer {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
            // An error is the end of the monitor, in the middle of it.
            if let Err(error) = stream.read_to_end(&mut Vec::new()) {
                assert_ne!(error.kind(), ErrorKind::WouldBlock, "no answer with {count}");
            }
        }
    }
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
