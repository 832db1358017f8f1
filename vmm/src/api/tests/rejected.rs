// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that are refused without the machine being asked, and how requests are counted.

use super::*;
use crate::api::stats::ApiStats;

#[test]
fn wrong_paths_and_methods_are_400() {
    for (method, path) in [
        ("GET", "/nothing"),
        ("PUT", "/nothing"),
        ("DELETE", "/balloon"),
        ("GET", "/actions"),
        ("POST", "/actions"),
        ("HEAD", "/"),
        ("OPTIONS", "/"),
        ("PUT", "/"),
        ("GET", "/memory/x"),
        ("GET", "/balloon?x=1"),
    ] {
        let message = refused(method, path, "");
        let expected = format!("Invalid request method and/or path: {method} {path}.");
        assert_eq!(message, expected);
    }
}

#[test]
fn what_is_not_offered_says_so() {
    for &(path, what) in absent::ABSENT {
        let path = path.replace("{id}", "rootfs");
        for method in ["GET", "PUT", "PATCH", "DELETE"] {
            let body = if method == "GET" { "" } else { "{}" };
            let message = refused(method, &path, body);
            assert_eq!(message, format!("Ballast does not offer {what}."));
        }
    }
}

#[test]
fn bodies_are_judged_before_the_machine_is_asked() {
    assert!(refused("GET", "/", "x").contains("no body"));
    assert!(refused("PUT", "/machine-config", "").contains("needs a JSON body"));
    let json = "An error occurred when deserializing the json body of a request: ";
    for body in [
        "{",
        "[]",
        "null",
        "{}",
        r#"{"vcpu_count": 1}"#,
        r#"{"vcpu_count": -1, "mem_size_mib": 1}"#,
        r#"{"vcpu_count": 256, "mem_size_mib": 1}"#,
        r#"{"vcpu_count": 1, "mem_size_mib": 1, "x": 1}"#,
        r#"{"vcpu_count": 1, "vcpu_count": 1, "mem_size_mib": 1}"#,
        r#"{"vcpu_count": 1, "mem_size_mib": 1} {}"#,
        r#"{"vcpu_count": 1, "mem_size_mib": 1, "cpu_template": "T9"}"#,
        "\u{feff}{}",
    ] {
        let message = refused("PUT", "/machine-config", body);
        assert!(message.starts_with(json), "{body}: {message}");
    }
    // Not UTF-8; nested too deeply.
    assert!(refused("PUT", "/actions", vec![0xff, 0xfe]).starts_with(json));
    assert!(refused("PUT", "/metrics", "[".repeat(10_000)).starts_with(json));

    let large = " ".repeat(DEFAULT_MAX_PAYLOAD_BYTES + 1);
    assert!(refused("PUT", "/actions", large).contains("larger than 51200 bytes"));
    let fits = format!(
        "{:<width$}",
        r#"{"action_type": "SendCtrlAltDel"}"#,
        width = DEFAULT_MAX_PAYLOAD_BYTES
    );
    assert_eq!(change("PUT", "/actions", &fits), Action::Instance(InstanceAction::SendCtrlAltDel));
}

/// serde's structures also take arrays of their fields' values; requests must not.
#[test]
fn arrays_are_not_taken_for_objects() {
    for (method, path, body) in [
        ("PUT", "/machine-config", r#"[2, 256]"#),
        ("PATCH", "/machine-config", r#"[2]"#),
        ("PUT", "/balloon", r#"[64, true, 0]"#),
        ("PUT", "/boot-source", r#"["/kernel", null, null]"#),
        ("PUT", "/actions", r#"["InstanceStart"]"#),
        ("PUT", "/memory/compact", "[]"),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id": "a", "is_root_device": true, "rate_limiter": [null, [1, 2, 3]]}"#,
        ),
    ] {
        let (status, reply, actions) = send(method, path, body);
        let message = reply["fault_message"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{method} {path} {body}: {reply}");
        assert!(message.contains("sequence"), "{method} {path} {body}: {message}");
        assert!(actions.is_empty(), "{method} {path}");
    }
}

#[test]
fn a_machine_that_is_gone_does_not_hang_a_client() {
    let (machine, requests) = channel().unwrap();
    drop(requests);
    let service = ApiService::new(machine, Arc::default(), 100);
    let request = Request::get("/").body(Bytes::new()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let response = runtime.block_on(service.answer(request));
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

#[test]
fn requests_are_counted() {
    let stats = Arc::new(ApiStats::default());
    stats.count(&Method::GET, "/", true);
    stats.count(&Method::PUT, "/", false);
    stats.count(&Method::POST, "/", false);
    assert_eq!(
        serde_json::to_value(&*stats).unwrap(),
        json!({"get": {"requests": 1, "fails": 0}, "put": {"requests": 1, "fails": 1},
            "patch": {"requests": 0, "fails": 0}, "other": {"requests": 1, "fails": 1},
            "refused_connections": 0, "deprecated": 0})
    );
}
