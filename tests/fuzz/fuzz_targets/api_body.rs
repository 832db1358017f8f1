// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any bytes as the body of any request, and as a configuration file: there is a response with a
//! known status, and an accepted value can be written and read back.
#![no_main]

use std::sync::{LazyLock, Mutex};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;
use vmm::api::error::FaultMessage;
use vmm::api::server::{ApiService, DEFAULT_MAX_PAYLOAD_BYTES};
use vmm::api::{Phase, Reply, channel};
use vmm::config::{Faults, HostLimits, VmConfig};

const REQUESTS: [(&str, &str); 20] = [
    ("PUT", "/actions"),
    ("PUT", "/balloon"),
    ("PATCH", "/balloon"),
    ("PATCH", "/balloon/hinting/start"),
    ("PATCH", "/balloon/hinting/stop"),
    ("PATCH", "/balloon/statistics"),
    ("PUT", "/boot-source"),
    ("PUT", "/drives/rootfs"),
    ("PUT", "/gpu"),
    ("PATCH", "/gpu/scanouts/0"),
    ("PUT", "/logger"),
    ("PUT", "/machine-config"),
    ("PATCH", "/machine-config"),
    ("PUT", "/memory"),
    ("PUT", "/memory/compact"),
    ("PUT", "/memory/evacuate"),
    ("PUT", "/metrics"),
    ("PATCH", "/vm"),
    ("GET", "/"),
    ("DELETE", "/nothing"),
];

/// Everything from a request to an action, in front of a machine that accepts every legal action.
struct Front {
    runtime: Runtime,
    service: ApiService,
}

static FRONT: LazyLock<Mutex<Front>> = LazyLock::new(|| {
    let (door, requests) = channel().expect("a channel");
    std::thread::spawn(move || {
        let mut phase = Phase::NotStarted;
        while let Some(request) = requests.wait() {
            let legal = request.action.check(phase);
            request.reply.send(legal.map(|()| Reply::Done));
            phase = match phase {
                Phase::NotStarted => Phase::Running,
                Phase::Running => Phase::Paused,
                Phase::Paused => Phase::NotStarted,
            };
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let service = ApiService::new(door, Default::default(), DEFAULT_MAX_PAYLOAD_BYTES);
    Mutex::new(Front { runtime, service })
});

fn request(pick: u8, body: &[u8]) {
    let (method, path) = REQUESTS[usize::from(pick) % REQUESTS.len()];
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(Bytes::copy_from_slice(body))
        .expect("a request");
    let front = FRONT.lock().expect("no panic before");
    let (status, reply) = front.runtime.block_on(async {
        let response = front.service.answer(request).await;
        let status = response.status();
        (status, response.into_body().collect().await.expect("a body").to_bytes())
    });
    match status {
        StatusCode::NO_CONTENT => assert!(reply.is_empty()),
        StatusCode::BAD_REQUEST => {
            serde_json::from_slice::<FaultMessage>(&reply).expect("a fault message");
        }
        other => panic!("{method} {path}: {other}"),
    }
}

fn configuration_file(text: &[u8]) {
    let Ok(mut config) = serde_json::from_slice::<VmConfig>(text) else { return };
    let written = serde_json::to_vec(&config).expect("what was read can be written");
    let again: VmConfig = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(again, config);
    // Files that the fuzzer names are not opened.
    config.boot_source = None;
    let judged: Result<(), Faults> = config
        .validate(&HostLimits { memory_mib: 1 << 20, mappings: HostLimits::DEFAULT_MAPPINGS });
    assert!(judged.is_err(), "there is no kernel");
}

fuzz_target!(|data: &[u8]| {
    let Some((&pick, body)) = data.split_first() else { return };
    request(pick, body);
    configuration_file(body);
});
