// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Responses to clients: documents, pictures, and errors of the machine.

use super::*;

#[test]
fn what_is_told() {
    let get = |path| {
        let (status, body, _) = send("GET", path, "");
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    };
    assert_eq!(
        get("/"),
        json!({"app_name": "Ballast", "id": "i", "state": "Running", "vmm_version": "0"})
    );
    assert_eq!(get("/version")["firecracker_version"], FIRECRACKER_API_VERSION);
    assert_eq!(
        get("/machine-config"),
        json!({"vcpu_count": 1, "mem_size_mib": 128, "smt": false, "cpu_template": "None",
            "track_dirty_pages": false, "huge_pages": "None"})
    );
    // Values that the guest has not reported are omitted.
    assert_eq!(
        get("/balloon/statistics"),
        json!({"target_pages": 512, "actual_pages": 0, "target_mib": 2, "actual_mib": 0,
            "free_memory": 7})
    );
    assert_eq!(get("/balloon/hinting/status"), json!({"host_cmd": 3, "guest_cmd": null}));
    assert_eq!(get("/metrics"), json!({"balloon": {}}));
    let config = get("/vm/config");
    for key in [
        "balloon",
        "boot-source",
        "cpu-config",
        "drives",
        "entropy",
        "logger",
        "machine-config",
        "memory-hotplug",
        "metrics",
        "mmds-config",
        "network-interfaces",
        "pmem",
        "vsock",
    ] {
        assert!(config.get(key).is_some(), "{key} is missing");
    }
    // It is a configuration file.
    assert_eq!(serde_json::from_value::<VmConfig>(config).unwrap(), VmConfig::default());
}

/// Sends a GET and returns type and bytes of the response.
fn get_raw(path: &str, accept: &str) -> (String, Vec<u8>) {
    let (machine, responder) = Responder::start(Phase::Running);
    let request = Request::get(path).header("accept", accept).body(Bytes::new()).unwrap();
    let service = ApiService::new(machine.clone(), Arc::default(), 0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (kind, bytes) = runtime.block_on(async {
        let response = service.answer(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        (kind, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    });
    drop(service);
    responder.finish(machine);
    (kind, bytes)
}

#[test]
fn block_maps_come_in_two_forms() {
    let (kind, bytes) = get_raw("/memory/blocks", "*/*");
    assert_eq!(kind, "application/json");
    assert_eq!(serde_json::from_slice::<BlockRuns>(&bytes).unwrap(), blocks());
    let (kind, bytes) = get_raw("/memory/blocks", "application/octet-stream");
    assert_eq!(kind, "application/octet-stream");
    assert_eq!(BlockRuns::from_bytes(&bytes).unwrap(), blocks());
}

#[test]
fn scanouts() {
    let (kind, png) = get_raw("/gpu/scanouts/0", "*/*");
    assert_eq!((kind.as_str(), &png[..8]), ("image/png", &b"\x89PNG\r\n\x1a\n"[..]));
    let (_, reply, _) = send("GET", "/gpu/scanouts/7", "");
    assert_eq!(reply["fault_message"], "Unknown scanout 7.");
    for n in ["-1", "x", "4294967296", "0x0", "1x"] {
        let message = refused("GET", &format!("/gpu/scanouts/{n}"), "");
        assert!(message.starts_with("Unknown scanout "), "{message}");
    }
    let mode = Mode { width_px: 800, height_px: 600 };
    assert_eq!(
        change("PATCH", "/gpu/scanouts/1", r#"{"mode": {"width_px": 800, "height_px": 600}}"#),
        Action::Gpu(GpuAction::UpdateScanout(1, ScanoutUpdate { mode: Some(mode) }))
    );
    assert_eq!(
        change("PATCH", "/gpu/scanouts/1", r#"{"mode": null}"#),
        Action::Gpu(GpuAction::UpdateScanout(1, ScanoutUpdate { mode: None }))
    );
    assert!(refused("PATCH", "/gpu/scanouts/1", "{}").contains("missing field `mode`"));
}

#[test]
fn refusals_of_the_machine_are_passed_on() {
    let (status, body, actions) = send("GET", "/balloon", "");
    assert_eq!(
        (status, actions),
        (StatusCode::BAD_REQUEST, vec![Action::Balloon(BalloonAction::Get)])
    );
    assert_eq!(body["fault_message"], "The microVM has no balloon device.");
    let (_, body, _) = send("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    let sentence = "The requested operation is not supported after starting the microVM.";
    assert_eq!(body["fault_message"], sentence);
    let (_, body, _) = send_in(Phase::NotStarted, "PATCH", "/vm", r#"{"state": "Paused"}"#);
    let sentence = "The requested operation is not supported before starting the microVM.";
    assert_eq!(body["fault_message"], sentence);
    let evacuate = r#"{"start": 0, "blocks": 1}"#;
    let (_, body, _) = send_in(Phase::Paused, "PUT", "/memory/evacuate", evacuate);
    let sentence = "The requested operation is not supported while the microVM is paused.";
    assert_eq!(body["fault_message"], sentence);
    let (status, body, _) = send("GET", "/memory", "");
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["fault_message"], "Internal error: unexpected reply.");
}
