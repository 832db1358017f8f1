// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files, FIFOs, pseudo-terminals and sockets as the console.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::guest::Program;
use crate::monitor::{LIMIT, Monitor, kvm};

fn fifo(path: &Path) {
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

fn stop(mut monitor: Monitor) {
    assert_eq!(monitor.request("PUT", "/actions", r#"{"action_type": "InstanceStop"}"#), 204);
    assert_eq!(monitor.end().code(), Some(0));
}

/// A monitor whose console is a socket, and the path of the socket, which is there.
fn on_socket(program: Program) -> (Monitor, PathBuf) {
    let mut monitor = Monitor::run(program, |dir, command| {
        command.arg("--console").arg(format!("socket={}", dir.join("console").display()));
    });
    let path = monitor.dir.path().join("console");
    monitor.wait_for("the socket", |_| UnixStream::connect(&path).is_ok());
    (monitor, path)
}

/// A client of the console's socket; it waits for a limited time.
fn client(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Reads until `wanted` has come.
fn read_until(from: &mut impl Read, wanted: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.windows(wanted.len()).any(|window| window == wanted) {
        from.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    seen
}

#[test]
fn a_fifo_without_a_reader_holds_up_no_start() {
    if !kvm() {
        return;
    }
    let mut monitor = Monitor::run(Program::Flood, |dir, command| {
        let path = dir.join("fifo");
        fifo(&path);
        command.arg("--console").arg(format!("file={}", path.display()));
    });
    assert_eq!(monitor.request("GET", "/", ""), 200);
    // A later reader sees output.
    let mut reader = File::open(monitor.dir.path().join("fifo")).unwrap();
    read_until(&mut reader, b"xxxx");
    stop(monitor);
}

#[test]
fn a_kernel_that_is_a_fifo_is_refused() {
    let mut monitor = Monitor::run(Program::Halt, |dir, command| {
        fifo(&dir.join("initrd"));
        command.arg("--initrd").arg(dir.join("initrd"));
    });
    assert_eq!(monitor.end().code(), Some(1));
    assert!(monitor.stderr().contains("a FIFO, not a regular file"), "{}", monitor.stderr());
}

#[test]
fn standard_input_may_be_a_file() {
    if !kvm() {
        return;
    }
    let text =
        "typed ahead, longer than the port's sixty-four bytes of room: 0123456789 0123456789\n";
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let monitor = Monitor::run(Program::Echo, |dir, command| {
        std::fs::write(dir.join("input"), text).unwrap();
        command.stdin(File::open(dir.join("input")).unwrap()).stdout(Stdio::from(writer));
    });
    let seen = read_until(&mut File::from(reader), b"\n");
    assert_eq!(String::from_utf8(seen).unwrap(), text);
    stop(monitor);
}

#[test]
fn a_pseudo_terminal_can_be_typed_into_at_any_time() {
    if !kvm() {
        return;
    }
    let mut monitor = Monitor::run(Program::Echo, |_, command| {
        command.args(["--console", "pty"]);
    });
    let path = |monitor: &Monitor| {
        let text = monitor.stderr();
        let (_, rest) = text.split_once("console on ")?;
        rest.split_once('\n').map(|(path, _)| PathBuf::from(path))
    };
    monitor.wait_for("the path", |monitor| path(monitor).is_some());
    let path = path(&monitor).unwrap();
    for word in ["one\n", "another\n"] {
        // Attached, and left again.
        let flags = libc::O_NOCTTY;
        let mut pty = File::options().read(true).write(true).custom_flags(flags).open(&path);
        let pty = pty.as_mut().unwrap();
        pty.write_all(word.as_bytes()).unwrap();
        assert_eq!(read_until(pty, word.as_bytes()), word.as_bytes());
    }
    stop(monitor);
}

#[test]
fn clients_of_a_socket_all_see_and_all_may_type() {
    if !kvm() {
        return;
    }
    let (monitor, path) = on_socket(Program::Echo);
    let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let connect = || client(&path);
    let (mut one, mut two) = (connect(), connect());
    one.write_all(b"from one;").unwrap();
    read_until(&mut one, b"from one;");
    read_until(&mut two, b"from one;");
    two.write_all(b"from two;").unwrap();
    read_until(&mut one, b"from two;");
    drop((one, two));
    // Later clients get the last output.
    let mut late = connect();
    assert_eq!(read_until(&mut late, b"from two;"), b"from one;from two;");
    // More than there is room for: the ninth is refused, and the others are served.
    let crowd: Vec<UnixStream> = (0..20).map(|_| connect()).collect();
    late.write_all(b"still here").unwrap();
    read_until(&mut late, b"still here");
    drop(crowd);
    stop(monitor);
    assert!(!path.exists());
}

#[test]
fn a_client_that_types_nothing_more_goes_on_reading() {
    if !kvm() {
        return;
    }
    let (monitor, path) = on_socket(Program::Echo);
    let mut only_reads = client(&path);
    only_reads.write_all(b"its last;").unwrap();
    only_reads.shutdown(std::net::Shutdown::Write).unwrap();
    read_until(&mut only_reads, b"its last;");
    let mut types = client(&path);
    types.write_all(b"of another").unwrap();
    read_until(&mut types, b"of another");
    read_until(&mut only_reads, b"of another");
    stop(monitor);
}

#[test]
fn a_client_that_is_one_too_many_is_told_so() {
    if !kvm() {
        return;
    }
    let (monitor, path) = on_socket(Program::Halt);
    let mut crowd: Vec<UnixStream> = (0..20).map(|_| client(&path)).collect();
    let last = crowd.last_mut().unwrap();
    let mut reason = String::new();
    last.read_to_string(&mut reason).unwrap();
    assert!(reason.contains("no place for one more client"), "{reason}");
    stop(monitor);
}

#[test]
fn a_client_that_does_not_read_holds_up_no_guest() {
    if !kvm() {
        return;
    }
    let (mut monitor, path) = on_socket(Program::Flood);
    let _deaf = client(&path);
    let mut listening = client(&path);
    let mut seen = vec![0; 1 << 20];
    listening.read_exact(&mut seen).unwrap();
    assert_eq!(monitor.request("GET", "/", ""), 200);
    stop(monitor);
}
