// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Starts that fail at any step, and are tried again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::ptr;

use crate::guest::Program;
use crate::monitor::{LIMIT, Monitor, ballast, kvm};

/// A request on a connection that stays; status and body.
fn ask(stream: &mut UnixStream, method: &str, path: &str, body: &str) -> (u16, String) {
    let head = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).unwrap();
    // Answers here are shorter than this, and sent at once.
    let mut answer = [0; 4096];
    let count = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned());
    (status.unwrap_or_default(), body)
}

/// Lets a running monitor have at most `count` descriptors.
fn limit_descriptors(monitor: &Monitor, count: u64) {
    let pid = i32::try_from(monitor.child.id()).unwrap();
    let limit = libc::rlimit { rlim_cur: count, rlim_max: 4096 };
    // SAFETY: reads the limit, and writes no old one.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, ptr::null_mut()) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_start_that_fails_at_any_step_can_be_tried_again() {
    if !kvm() {
        return;
    }
    let mut monitor = Monitor::run(Program::Halt, |dir, command| {
        let mut without = ballast();
        without.arg("--api-sock").arg(dir.join("api"));
        without.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        *command = without;
    });
    assert_eq!(monitor.request("GET", "/", ""), 200);
    let mut stream = UnixStream::connect(monitor.socket()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let kernel = monitor.dir.path().join("kernel");
    for (path, body) in [
        ("/boot-source", format!("{{\"kernel_image_path\": {kernel:?}}}")),
        ("/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 16}"#.to_owned()),
        // The last step opens a descriptor too.
        ("/memory", r#"{"paging": {}}"#.to_owned()),
    ] {
        let (status, answer) = ask(&mut stream, "PUT", path, &body);
        assert_eq!(status, 204, "{answer}");
    }
    let mut failed = false;
    for count in 8..100 {
        limit_descriptors(&monitor, count);
        let start = r#"{"action_type": "InstanceStart"}"#;
        let (status, answer) = ask(&mut stream, "PUT", "/actions", start);
        let (_, instance) = ask(&mut stream, "GET", "/", "");
        if status == 204 {
            assert!(failed && instance.contains("Running"), "{instance}");
            monitor.signal(libc::SIGTERM);
            monitor.end();
            return;
        }
        failed = true;
        assert!(answer.contains("Too many open files"), "{count} descriptors: {answer}");
        assert!(instance.contains("Not started"), "{count} descriptors: {answer}, but {instance}");
    }
    panic!("not started in the end");
}
