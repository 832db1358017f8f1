// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The HTTP API: starting a guest with Firecracker's requests, and misbehaving clients.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use harness::api::read_response;
use harness::guest::Guest;
use harness::monitor::{Monitor, Spec, config_json};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);

/// Starts Ballast as clients of Firecracker start theirs.
fn start_unconfigured(context: &Context) -> Result<Monitor> {
    let mut monitor =
        Monitor::start_ballast(&context.payload.ballast(), &context.logs, |dir, command| {
            command
                .arg("--api-sock")
                .arg(dir.join("api.sock"))
                .args(["--id", "anonymous-instance"]);
        })?;
    monitor.wait_for_api(LIMIT)?;
    Ok(monitor)
}

/// No subcommand, Firecracker's flags, the configuration request by request, `InstanceStart`.
pub(crate) fn starts_like_firecracker(context: &Context) -> Result<()> {
    let monitor = start_unconfigured(context)?;
    let api = monitor.api().clone();
    let spec = Spec { cpus: 2, ..Spec::new(&context.payload, 256) };
    let config = config_json(&spec);

    let instance = api.get("/")?;
    check_eq!(instance["id"], json!("anonymous-instance"));
    check_eq!(instance["state"], json!("Not started"));
    check!(api.get("/version")?["firecracker_version"].is_string(), "no version");
    check_eq!(api.put("/machine-config", &config["machine-config"])?.status, 204);
    check_eq!(api.get("/machine-config")?["mem_size_mib"], json!(256));
    check_eq!(api.put("/boot-source", &config["boot-source"])?.status, 204);
    check_eq!(api.put("/balloon", &config["balloon"])?.status, 204);
    check_eq!(api.put("/actions", &json!({ "action_type": "InstanceStart" }))?.status, 204);
    check_eq!(api.get("/")?["state"], json!("Running"));

    let mut guest = Guest::attach(monitor, spec)?;
    // Requests that are legal only before the start are rejected after it, with the messages that
    // clients expect.
    let late = api.request("PUT", "/boot-source", Some(&config["boot-source"].to_string()))?;
    check_eq!(late.status, 400);
    let words = late.fault_message().unwrap_or_default();
    check!(words.contains("after starting the microVM"), "{words}");
    let whole = api.get("/vm/config")?;
    check_eq!(whole["machine-config"]["vcpu_count"], json!(2));
    guest.balloon_to(64)?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Invalid requests get status 400 with a reason and change nothing.
pub(crate) fn rejects_invalid_requests(context: &Context) -> Result<()> {
    let monitor = start_unconfigured(context)?;
    let api = monitor.api();
    let huge = format!("{{\"kernel_image_path\": \"{}\"}}", "x".repeat(60_000));
    for (method, path, body) in [
        ("PUT", "/boot-source", Some("{ not json")),
        ("PUT", "/boot-source", Some("[]")),
        ("PUT", "/boot-source", Some("{}")),
        ("PUT", "/boot-source", Some("{\"kernel_image_path\": \"/nowhere\", \"more\": 1}")),
        ("PUT", "/boot-source", Some(huge.as_str())),
        ("PUT", "/machine-config", Some("{\"vcpu_count\": 0, \"mem_size_mib\": 128}")),
        ("PUT", "/machine-config", Some("{\"vcpu_count\": 1, \"mem_size_mib\": 0}")),
        ("PUT", "/machine-config", None),
        ("PATCH", "/balloon", Some("{\"amount_mib\": 1}")),
        ("PATCH", "/vm", Some("{\"state\": \"Paused\"}")),
        ("PUT", "/actions", Some("{\"action_type\": \"InstanceStart\"}")),
        ("PUT", "/actions", Some("{\"action_type\": \"SelfDestruct\"}")),
        ("GET", "/no/such/path", None),
        ("DELETE", "/machine-config", None),
        ("POST", "/balloon", Some("{}")),
    ] {
        let response = api.request(method, path, body)?;
        check!(
            response.status == 400,
            "{method} {path} was answered {}: {}",
            response.status,
            response.text()
        );
        let explained = response.fault_message().is_some() || response.text().contains("error");
        check!(explained, "{method} {path}: {}", response.text());
    }
    check_eq!(api.get("/")?["state"], json!("Not started"));
    Ok(())
}

/// Clients that send half a request, garbage or nothing, and disconnect or stay: other clients are
/// served.
pub(crate) fn survives_clients_that_disconnect(context: &Context) -> Result<()> {
    let mut guest =
        Guest::boot(&context.ballast(), Spec::new(&context.payload, 128), &context.logs)?;
    let api = guest.monitor.api().clone();
    let send = |bytes: &[u8]| -> Result<std::os::unix::net::UnixStream> {
        let mut stream = api.connect()?;
        stream.write_all(bytes).map_err(Error::io("sending part of a request"))?;
        Ok(stream)
    };
    for round in 0..20 {
        drop(send(b"")?);
        drop(send(b"PATCH /balloon HTTP/1.1\r\nContent-Le")?);
        drop(send(b"PATCH /balloon HTTP/1.1\r\nContent-Length: 100\r\n\r\n{\"amount")?);
        // Gone before the answer.
        drop(send(b"GET /vm/config HTTP/1.1\r\nHost: x\r\n\r\n")?);
        let half = send(b"PATCH /vm HTTP/1.1\r\nContent-Length: 10\r\n\r\n")?;
        half.shutdown(Shutdown::Write).map_err(Error::io("shutting down"))?;
        check!(api.get("/").is_ok(), "not served in round {round}");
    }
    // Some stay connected and send nothing.
    let silent: Vec<_> = (0..4).map(|_| send(b"GET / HT")).collect::<Result<_>>()?;
    check_eq!(api.get("/")?["state"], json!("Running"));
    drop(silent);
    // Bytes that are not HTTP get an error, or the connection is closed.
    let mut nonsense = send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")?;
    let mut answer = Vec::new();
    nonsense.read_to_end(&mut answer).map_err(Error::io("reading"))?;
    check!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    // A connection serves more than one request.
    let mut kept = send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let first = kept.try_clone().map_err(Error::io("cloning"))?;
    check_eq!(read_response(first).map_err(Error::io("reading"))?.status, 200);
    kept.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").map_err(Error::io("sending"))?;
    check_eq!(read_response(kept).map_err(Error::io("reading"))?.status, 200);
    guest.agent.command("ping")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}
