// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! In Firecracker's place: the status codes that it answers before boot, and what its clients and
//! supervisors see of the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::guest::Program;
use crate::monitor::{LIMIT, Monitor, ballast, kvm};

/// Cases of `firecracker-codes.json` that Ballast answers differently, and why; docs/api.md gives
/// the same reasons. A case that agrees must not be here.
const DIFFERENT: &[(&str, &str)] = &[
    ("PUT /boot-source not ELF", "accepted; the start fails | rejected by the PUT"),
    ("PUT /machine-config 33 cpu", "a machine may have 254 vCPUs"),
    ("PUT /machine-config big mem", "memory beyond the host's is refused by the PUT already"),
    ("PUT /cpu-config {}", "there are no custom CPU templates"),
    ("PUT /pmem", "there are no persistent memory devices"),
];

/// A monitor in Firecracker's place, in a folder of its own.
fn firecracker(configure: impl FnOnce(&Path, &mut Command)) -> Monitor {
    let dir = tempfile::tempdir().unwrap();
    let mut command = ballast();
    command.arg("--api-sock").arg(dir.path().join("api"));
    command.stdin(Stdio::null());
    command.stdout(File::create(dir.path().join("stdout")).unwrap());
    command.stderr(File::create(dir.path().join("stderr")).unwrap());
    configure(dir.path(), &mut command);
    Monitor { child: command.spawn().unwrap(), dir }
}

fn stdout(monitor: &Monitor) -> String {
    std::fs::read_to_string(monitor.dir.path().join("stdout")).unwrap()
}

/// One request as the file has it: a body that is a string is sent unchanged. The status, or `EXIT`
/// where the process has ended.
fn exchange(monitor: &mut Monitor, step: &Value) -> String {
    let (method, path) = (step[0].as_str().unwrap(), step[1].as_str().unwrap());
    let body = match &step[2] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let mut stream = None;
    monitor.wait_for("the API", |monitor| {
        stream = UnixStream::connect(monitor.socket()).ok();
        stream.is_some()
    });
    let mut stream = stream.unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if let Some(body) = &body {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    request += &body.unwrap_or_default();
    // A body that is too large need not be read to its end.
    let _ = stream.write_all(request.as_bytes());
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    let reply = String::from_utf8_lossy(&reply);
    reply.split(' ').nth(1).map_or_else(|| "EXIT".to_owned(), str::to_owned)
}

#[test]
fn status_codes_before_boot_are_firecrackers() {
    let file: Value = serde_json::from_str(include_str!("firecracker-codes.json")).unwrap();
    let different: BTreeMap<&str, &str> = DIFFERENT.iter().copied().collect();
    let (mut wrong, mut agreeing) = (Vec::new(), 0);
    for case in file["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut monitor = firecracker(|_, _| ());
        let dir = monitor.dir.path().to_owned();
        std::fs::write(dir.join("kernel"), Program::Halt.image()).unwrap();
        std::fs::write(dir.join("initrd"), "initrd").unwrap();
        File::create(dir.join("disk")).unwrap().set_len(1 << 20).unwrap();
        let text = case["steps"].to_string();
        let text = text.replace("KERNEL", dir.join("kernel").to_str().unwrap());
        let text = text.replace("INITRD", dir.join("initrd").to_str().unwrap());
        let text = text.replace("DISK", dir.join("disk").to_str().unwrap());
        let text = text.replace("DIR", dir.to_str().unwrap());
        let steps: Value = serde_json::from_str(&text).unwrap();
        let codes: Vec<String> =
            steps.as_array().unwrap().iter().map(|step| exchange(&mut monitor, step)).collect();
        let expected: Vec<&str> =
            case["codes"].as_array().unwrap().iter().map(|code| code.as_str().unwrap()).collect();
        let agrees = codes == expected;
        agreeing += usize::from(agrees);
        let excused = different.contains_key(name);
        if agrees && different.contains_key(name) {
            wrong.push(format!("{name}: agrees now, take it off the list"));
        } else if !agrees && !excused {
            wrong.push(format!("{name}: {codes:?}, Firecracker answers {expected:?}"));
        }
    }
    println!("{agreeing} of {} cases agree", file["cases"].as_array().unwrap().len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// docs/api.md gives the reasons of the list above.
#[test]
fn differences_are_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
    let page = std::fs::read_to_string(path).unwrap();
    for (case, reason) in DIFFERENT {
        assert!(page.contains(reason), "{case}: {reason}");
    }
}

fn start(monitor: &mut Monitor) {
    start_with(monitor, Program::Halt);
}

fn start_with(monitor: &mut Monitor, program: Program) {
    let kernel = monitor.dir.path().join("kernel");
    std::fs::write(&kernel, program.image()).unwrap();
    let boot = serde_json::json!({"kernel_image_path": kernel});
    assert_eq!(monitor.request("PUT", "/boot-source", &boot.to_string()), 204);
    let machine = r#"{"vcpu_count": 2, "mem_size_mib": 17}"#;
    assert_eq!(monitor.request("PUT", "/machine-config", machine), 204);
    assert_eq!(monitor.request("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#), 204);
}

#[test]
fn the_process_looks_like_firecracker() {
    if !kvm() {
        return;
    }
    let mut monitor = firecracker(|_, command| {
        command.args(["--boot-timer", "--start-time-us", "1", "--start-time-cpu-us", "1"]);
    });
    let flush = r#"{"action_type": "FlushMetrics"}"#;
    assert_eq!(monitor.request("PUT", "/actions", flush), 400, "not before the start");
    start(&mut monitor);
    assert_eq!(monitor.request("PUT", "/actions", flush), 204, "without a metrics file too");
    // A new thread names itself.
    monitor.wait_for("threads of Firecracker's names", |monitor| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", monitor.child.id())).unwrap();
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
        };
        let names: Vec<String> = tasks.map(name).collect();
        ["fc_vcpu 0\n", "fc_vcpu 1\n", "fc_api\n"]
            .iter()
            .all(|name| names.iter().any(|n| n == name))
    });
    monitor.wait_for("the log", |monitor| stdout(monitor).contains("API server started."));
    assert!(stdout(&monitor).contains("Running Firecracker v"), "{}", stdout(&monitor));
    assert!(!stdout(&monitor).contains("WARN"), "{}", stdout(&monitor));

    // TIME [ID:THREAD] message
    let first = stdout(&monitor).lines().next().unwrap().to_owned();
    assert!(first.contains(" [anonymous-instance:main] Running Firecracker v"), "{first}");

    // Firecracker does not catch SIGTERM, and leaves its socket.
    monitor.signal(libc::SIGTERM);
    assert_eq!(monitor.end().signal(), Some(libc::SIGTERM));
    assert!(monitor.socket().exists());
}

#[test]
fn metrics_lines_have_all_groups_from_the_start() {
    if !kvm() {
        return;
    }
    let mut monitor = firecracker(|dir, command| {
        command.arg("--metrics-path").arg(dir.join("metrics"));
    });
    start(&mut monitor);
    let path = monitor.dir.path().join("metrics");
    let text = || std::fs::read_to_string(&path).unwrap_or_default();
    let line = || text().split_once('\n').map(|(line, _)| line.to_owned());
    monitor.wait_for("the whole first line", |_| line().is_some());
    let line: Value = serde_json::from_str(&line().unwrap()).unwrap();
    for group in [
        "api_server",
        "balloon",
        "block",
        "deprecated_api",
        "entropy",
        "get_api_requests",
        "i8042",
        "interrupts",
        "latencies_us",
        "logger",
        "memory_hotplug",
        "mmds",
        "net",
        "patch_api_requests",
        "pmem",
        "put_api_requests",
        "seccomp",
        "signals",
        "uart",
        "vcpu",
        "vmm",
        "vsock",
    ] {
        assert!(line[group].is_object(), "{group} is missing");
    }
    assert_eq!(line["put_api_requests"]["boot_source_count"], 1);
    assert_eq!(line["vcpu"]["exit_io_in_agg"]["max_us"], 0);
}

#[test]
fn exits_pauses_and_resumes_are_measured() {
    if !kvm() {
        return;
    }
    let mut monitor = firecracker(|dir, command| {
        command.arg("--metrics-path").arg(dir.join("metrics"));
    });
    start_with(&mut monitor, Program::Flood);
    assert_eq!(monitor.request("PATCH", "/vm", r#"{"state": "Paused"}"#), 204);
    assert_eq!(monitor.request("PATCH", "/vm", r#"{"state": "Resumed"}"#), 204);
    let path = monitor.dir.path().join("metrics");
    monitor.wait_for("a line with an exit", |monitor| {
        let flush = r#"{"action_type": "FlushMetrics"}"#;
        assert_eq!(monitor.request("PUT", "/actions", flush), 204);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).any(|line| {
            let us = |group: &str, name: &str| line[group][name].as_u64().unwrap();
            let exits = &line["vcpu"]["exit_io_out_agg"];
            let (min, max, sum) = (&exits["min_us"], &exits["max_us"], &exits["sum_us"]);
            let measured = [min, max, sum].iter().all(|us| us.as_u64().unwrap() > 0);
            let ordered = min.as_u64() <= max.as_u64();
            assert!(ordered, "{exits}");
            for name in ["pause_vm", "resume_vm"] {
                let (asked, done) =
                    (us("latencies_us", name), us("latencies_us", &format!("vmm_{name}")));
                assert!(asked >= done, "{name}: {asked}, {done}");
                if asked > 0 {
                    assert!(done > 0, "{name}");
                }
            }
            measured && us("latencies_us", "pause_vm") > 0 && us("latencies_us", "resume_vm") > 0
        })
    });
}

/// A line of metrics is longer than a pipe takes at once.
#[test]
fn lines_through_a_fifo_that_is_nearly_full_stay_whole() {
    if !kvm() {
        return;
    }
    let mut fifo = None;
    let mut monitor = firecracker(|dir, command| {
        let path = dir.join("metrics");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        let nonblocking = libc::O_NONBLOCK;
        let options = File::options().read(true).write(true).custom_flags(nonblocking).open(&path);
        fifo = Some(options.unwrap());
        command.arg("--metrics-path").arg(path);
    });
    let mut fifo = fifo.unwrap();
    // All but a little is taken by others.
    let filler = [&[b'.'; 255][..], b"\n"].concat();
    while fifo.write(&filler).is_ok_and(|count| count == filler.len()) {}
    let mut seen = vec![0; 3 * 256];
    fifo.read_exact(&mut seen).unwrap();
    start(&mut monitor);
    let flush = r#"{"action_type": "FlushMetrics"}"#;
    // Until the ring in front of it is full too, and lines are lost.
    let mut answers = Vec::new();
    while answers.last() != Some(&400) {
        answers.push(monitor.request("PUT", "/actions", flush));
    }
    let written = 1 + answers.iter().filter(|status| **status == 204).count();
    let mut buffer = [0; 1000];
    monitor.wait_for("all lines", |_| {
        while let Ok(count @ 1..) = fifo.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..count]);
        }
        seen.iter().filter(|byte| **byte == b'{').count() > 0
            && seen.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{")).count()
                >= written
            && seen.ends_with(b"\n")
    });
    let mut lines = 0;
    for line in seen.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        if line != &filler[..255] {
            assert!(line.len() > 4096, "{} bytes", line.len());
            serde_json::from_slice::<Value>(line).expect("a whole line");
            lines += 1;
        }
    }
    assert_eq!(lines, written, "a line is complete or missing");
}

#[test]
fn sockets_stay_and_the_log_says_how_it_ended() {
    if !kvm() {
        return;
    }
    let mut monitor = firecracker(|_, _| ());
    let vsock = monitor.dir.path().join("v.sock");
    let body = serde_json::json!({"guest_cid": 3, "uds_path": vsock}).to_string();
    assert_eq!(monitor.request("PUT", "/vsock", &body), 204);
    start_with(&mut monitor, Program::SayAndReset);
    assert_eq!(monitor.end().code(), Some(0));
    let said = stdout(&monitor);
    assert!(said.contains("] Vmm is stopping."), "{said}");
    assert!(said.contains("] Firecracker exiting successfully. exit_code=0"), "{said}");
    assert!(vsock.exists() && monitor.socket().exists());
}

#[test]
fn metadata_of_a_guest_that_cannot_see_them_are_refused() {
    if !kvm() {
        return;
    }
    let mut monitor = firecracker(|_, _| ());
    assert_eq!(monitor.request("PUT", "/mmds", r#"{"a": "b"}"#), 204);
    start(&mut monitor);
    assert_eq!(monitor.request("GET", "/mmds", ""), 400);
    assert_eq!(monitor.request("PUT", "/mmds", r#"{"a": "b"}"#), 400);
    assert_eq!(monitor.request("PATCH", "/mmds", r#"{"a": "b"}"#), 400);
    let config = r#"{"network_interfaces": ["eth0"]}"#;
    assert_eq!(monitor.request("PUT", "/mmds/config", config), 400, "not after the start");
}

#[test]
fn mistakes_end_with_firecrackers_codes() {
    for (arguments, code) in [
        (&["--nonsense"][..], 153),
        (&["--level", "loud"], 152),
        (&["--seccomp-filter", "/no/such/file"], 1),
        (&["--describe-snapshot", "/no/such/file"], 1),
    ] {
        let mut monitor = firecracker(|_, command| {
            command.args(arguments);
        });
        assert_eq!(monitor.end().code(), Some(code), "{arguments:?}: {}", monitor.stderr());
        assert_eq!(monitor.stderr().lines().count(), 1, "{}", monitor.stderr());
    }
}

#[test]
fn a_second_monitor_leaves_the_socket_of_the_first_alone() {
    let mut first = firecracker(|_, _| ());
    assert_eq!(first.request("GET", "/", ""), 200);
    let socket = first.socket();
    let mut second = firecracker(|_, command| {
        *command = ballast();
        command.arg("--api-sock").arg(&socket).stderr(Stdio::null()).stdout(Stdio::null());
    });
    assert_eq!(second.end().code(), Some(1));
    assert_eq!(first.request("GET", "/", ""), 200);
}

#[test]
fn help_into_a_pipe_is_plain() {
    for arguments in [&["--help"][..], &["run", "--help"]] {
        let output = ballast().args(arguments).output().unwrap();
        assert!(output.status.success());
        assert!(!output.stdout.contains(&0x1b), "{arguments:?}");
    }
}

#[test]
fn half_open_connections_and_killed_clients_hold_up_no_other() {
    let mut monitor = firecracker(|_, _| ());
    assert_eq!(monitor.request("GET", "/", ""), 200);
    let mut stalled = Vec::new();
    for _ in 0..9 {
        let mut stream = UnixStream::connect(monitor.socket()).unwrap();
        stream.write_all(b"PUT /machine-config HTTP/1.1\r\nContent-Le").unwrap();
        stalled.push(stream);
    }
    assert_eq!(monitor.request("GET", "/version", ""), 200);
    // The tenth place, and one more.
    let _tenth = UnixStream::connect(monitor.socket()).unwrap();
    let mut refused = UnixStream::connect(monitor.socket()).unwrap();
    refused.set_read_timeout(Some(LIMIT)).unwrap();
    let mut reply = String::new();
    refused.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    // Clients that die give their places back.
    drop(stalled);
    monitor.wait_for("a place", |monitor| {
        let mut stream = UnixStream::connect(monitor.socket()).unwrap();
        // One that is turned away may be closed before it has written.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        reply.starts_with(b"HTTP/1.1 200 ")
    });
}
