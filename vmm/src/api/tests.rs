// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The routes over a real channel, with a thread that stands in for the machine, but no socket.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::balloon::*;
use super::blocks::*;
use super::boot_source::*;
use super::channel::Request as Asked;
use super::cma::*;
use super::compaction::*;
use super::drives::*;
use super::evacuation::*;
use super::gpu::*;
use super::instance::*;
use super::logger::*;
use super::machine_config::*;
use super::memory::*;
use super::metrics::*;
use super::server::{DEFAULT_MAX_PAYLOAD_BYTES, Service};
use super::stats::ApiStats;
use super::*;
use crate::block_view::{BlockRun, BlockRuns};
use crate::config::*;
use devices::display::{Area, Frame, Pixels, PngFile, Size, encode_png};
use devices::virtio::{Deadline, Progress};

/// A machine's end of the channel that notes every action and answers with what a real one could.
pub(super) struct Responder {
    pub(super) seen: Arc<Mutex<Vec<Action>>>,
    thread: JoinHandle<()>,
}

impl Responder {
    pub(super) fn start(phase: Phase) -> (ActionSender, Self) {
        let (machine, requests) = channel().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            // Ends with the last machine.
            while let Some(Asked { action, reply: sender, .. }) = requests.wait() {
                log.lock().unwrap().push(action.clone());
                sender.send(action.check(phase).and_then(|()| reply(action)));
            }
        });
        (machine, Self { seen, thread })
    }

    pub(super) fn finish(self, machine: ActionSender) -> Vec<Action> {
        drop(machine);
        self.thread.join().unwrap();
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

fn reply(action: Action) -> Result<Reply, Refusal> {
    Ok(match action {
        Action::Instance(InstanceAction::Get) => InstanceReply::Instance(Instance {
            app_name: "Ballast".into(),
            id: "i".into(),
            state: Phase::Running,
            vmm_version: "0".into(),
        })
        .into(),
        Action::Instance(InstanceAction::GetConfig) => InstanceReply::Config(Box::default()).into(),
        Action::Machine(MachineAction::Get) => MachineReply(MachineConfig::default()).into(),
        Action::Balloon(BalloonAction::Get) => return Err(Refusal::NoDevice("balloon")),
        Action::Balloon(BalloonAction::GetStatistics) => {
            BalloonReply::Statistics(Box::new(BalloonStats {
                target_pages: 512,
                target_mib: 2,
                guest: GuestStats { free_memory: Some(7), ..GuestStats::default() },
                ..BalloonStats::default()
            }))
            .into()
        }
        Action::Balloon(BalloonAction::GetHinting) => {
            BalloonReply::Hinting(HintingStatus { host_cmd: 3, guest_cmd: None }).into()
        }
        Action::Metrics(MetricsAction::Get) => MetricsReply(json!({"balloon": {}})).into(),
        Action::Blocks(BlocksAction::Get) => BlocksReply(blocks()).into(),
        Action::Gpu(GpuAction::Get) => GpuReply::Status(Box::default()).into(),
        Action::Gpu(GpuAction::GetScanout(0)) => {
            GpuReply::Picture(Camera::new(|| Ok(black_png()))).into()
        }
        Action::Gpu(GpuAction::GetScanout(n)) => return Err(Refusal::NoScanout(n.to_string())),
        // A responder that errs: the handler must not pass it on as success.
        Action::Memory(MemoryAction::Get) => Reply::Done,
        _ => Reply::Done,
    })
}

fn blocks() -> BlockRuns {
    let run = BlockRun { first: 3, blocks: 2, present: 512, huge: true, ..BlockRun::default() };
    BlockRuns { block_bytes: 2 << 20, runs: vec![run] }
}

/// Sends one request through everything but the socket; returns the status, the body and what the
/// machine was asked.
fn send_in(
    phase: Phase,
    method: &str,
    path: &str,
    body: impl Into<Bytes>,
) -> (StatusCode, Value, Vec<Action>) {
    let (machine, responder) = Responder::start(phase);
    let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
    let service = Service::new(machine.clone(), Arc::default(), DEFAULT_MAX_PAYLOAD_BYTES);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (status, bytes) = runtime.block_on(async {
        let response = service.answer(request).await;
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    });
    drop(service);
    let value =
        if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
    (status, value, responder.finish(machine))
}

fn send(method: &str, path: &str, body: impl Into<Bytes>) -> (StatusCode, Value, Vec<Action>) {
    send_in(Phase::Running, method, path, body)
}

/// A PUT before the start that must succeed.
fn put(path: &str, body: Value) -> Action {
    let (status, reply, mut actions) = send_in(Phase::NotStarted, "PUT", path, body.to_string());
    assert_eq!((status, reply), (StatusCode::NO_CONTENT, Value::Null), "{path}");
    assert_eq!(actions.len(), 1);
    actions.remove(0)
}

/// A PATCH or PUT of a running machine that must succeed.
fn change(method: &str, path: &str, body: &str) -> Action {
    let (status, reply, mut actions) = send(method, path, body.to_owned());
    assert_eq!((status, reply), (StatusCode::NO_CONTENT, Value::Null), "{path}");
    assert_eq!(actions.len(), 1);
    actions.remove(0)
}

/// The fault message of a request that must be refused without the machine being asked.
fn refused(method: &str, path: &str, body: impl Into<Bytes>) -> String {
    let (status, reply, actions) = send(method, path, body);
    assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {path}");
    assert_eq!(actions, [], "{method} {path}");
    assert_eq!(reply.as_object().unwrap().len(), 1);
    reply["fault_message"].as_str().unwrap().to_owned()
}

/// A picture without a colour in it.
struct Black;

impl Pixels for Black {
    fn size(&self) -> Size {
        Size::new(32, 32)
    }

    fn copy(&self, area: Area, _out: &mut [u8], _stride: usize, _deadline: &mut Deadline) -> u32 {
        area.size.height.into()
    }
}

fn black_png() -> PngFile {
    let budget = mm::budget::Budget::bytes("test", 1 << 20);
    let mut frame = Frame::new(Black.size(), &budget).unwrap();
    assert_eq!(frame.fill(&Black, &mut Deadline::never()), Progress::Done);
    encode_png(&frame, &budget).unwrap()
}

#[test]
fn before_the_start_everything_is_described() {
    let machine = put("/machine-config", json!({"vcpu_count": 2, "mem_size_mib": 256}));
    let expected = MachineConfig { vcpu_count: 2, mem_size_mib: 256, ..MachineConfig::default() };
    assert_eq!(machine, Action::Machine(MachineAction::Set(expected)));

    let boot = put("/boot-source", json!({"kernel_image_path": "/k", "boot_args": "a"}));
    let expected = BootSource {
        kernel_image_path: "/k".into(),
        initrd_path: None,
        boot_args: Some("a".into()),
    };
    assert_eq!(boot, Action::Boot(BootAction::Set(expected)));

    let balloon = put("/balloon", json!({"amount_mib": 0, "deflate_on_oom": true}));
    let expected = BalloonConfig {
        amount_mib: 0,
        deflate_on_oom: true,
        stats_polling_interval_s: 0,
        free_page_hinting: false,
        free_page_reporting: false,
        blocks: true,
    };
    assert_eq!(balloon, Action::Balloon(BalloonAction::Set(expected)));

    let memory =
        put("/memory", json!({"backing": "hugetlb-2m", "cma_mib": 4, "host_budget_mib": 64}));
    let expected = MemoryConfig {
        backing: Some(BackingKind::Hugetlb2M),
        cma_mib: 4,
        host_budget_mib: 64,
        ..MemoryConfig::default()
    };
    assert_eq!(memory, Action::Memory(MemoryAction::Set(expected)));

    assert_eq!(
        put("/actions", json!({"action_type": "InstanceStart"})),
        Action::Instance(InstanceAction::Start)
    );
    let Action::Logger(LoggerAction::Set(logger)) = put("/logger", json!({"level": "dEbUg"}))
    else {
        panic!()
    };
    assert_eq!(logger.level, Some(LogLevel::Debug));
    // As Firecracker, this one does not mind unknown fields.
    let Action::Metrics(MetricsAction::Set(metrics)) =
        put("/metrics", json!({"metrics_path": "/m", "new": 1}))
    else {
        panic!()
    };
    assert_eq!(metrics.metrics_path, std::path::Path::new("/m"));

    let (status, _, actions) =
        send_in(Phase::NotStarted, "PATCH", "/machine-config", r#"{"vcpu_count": 4}"#);
    let update = MachineUpdate { vcpu_count: Some(4), ..MachineUpdate::default() };
    assert_eq!(
        (status, actions),
        (StatusCode::NO_CONTENT, vec![Action::Machine(MachineAction::Update(update))])
    );
}

#[test]
fn a_running_machine_is_changed() {
    assert_eq!(
        change("PATCH", "/balloon", r#"{"amount_mib": 64}"#),
        Action::Balloon(BalloonAction::Update(BalloonUpdate { amount_mib: 64 }))
    );
    assert_eq!(
        change("PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s": 5}"#),
        Action::Balloon(BalloonAction::UpdateStatistics(BalloonStatsUpdate {
            stats_polling_interval_s: 5
        }))
    );
    assert_eq!(
        change("PATCH", "/balloon/hinting/start", ""),
        Action::Balloon(BalloonAction::StartHinting(HintingStart { acknowledge_on_stop: true }))
    );
    assert_eq!(
        change("PATCH", "/balloon/hinting/start", r#"{"acknowledge_on_stop": false}"#),
        Action::Balloon(BalloonAction::StartHinting(HintingStart { acknowledge_on_stop: false }))
    );
    assert_eq!(
        change("PATCH", "/balloon/hinting/stop", "any thing"),
        Action::Balloon(BalloonAction::StopHinting)
    );
    assert_eq!(
        change("PATCH", "/vm", r#"{"state": "Paused"}"#),
        Action::Instance(InstanceAction::Pause)
    );
    assert_eq!(
        change("PATCH", "/vm", r#"{"state": "Resumed"}"#),
        Action::Instance(InstanceAction::Resume)
    );
    for (name, action) in [
        ("FlushMetrics", Action::Instance(InstanceAction::FlushMetrics)),
        ("SendCtrlAltDel", Action::Instance(InstanceAction::SendCtrlAltDel)),
        ("InstanceStop", Action::Instance(InstanceAction::Stop)),
    ] {
        assert_eq!(change("PUT", "/actions", &json!({"action_type": name}).to_string()), action);
    }
}

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
    // What the guest never told is left out.
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

#[test]
fn a_disks_name_is_the_same_in_path_and_body() {
    let body = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "/i"}"#;
    let drive: DriveConfig = serde_json::from_str(body).unwrap();
    assert_eq!(
        put("/drives/a", serde_json::from_str(body).unwrap()),
        Action::Drives(DriveAction::Set(drive))
    );
    let update = DriveUpdate { drive_id: "a".into(), path_on_host: None, rate_limiter: None };
    let text = r#"{"drive_id": "a"}"#;
    assert_eq!(change("PATCH", "/drives/a", text), Action::Drives(DriveAction::Update(update)));
    for (method, body) in [("PUT", body), ("PATCH", text)] {
        let words = refused(method, "/drives/b", body.to_owned());
        assert!(words.contains("`b` in the path is not the name `a`"), "{words}");
    }
}

/// Sends a GET and returns type and bytes of the answer.
fn get_raw(path: &str, accept: &str) -> (String, Vec<u8>) {
    let (machine, responder) = Responder::start(Phase::Running);
    let request = Request::get(path).header("accept", accept).body(Bytes::new()).unwrap();
    let service = Service::new(machine.clone(), Arc::default(), 0);
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
    assert_eq!(reply["fault_message"], "There is no scanout 7.");
    for n in ["-1", "x", "4294967296", "0x0", "%20"] {
        let message = refused("GET", &format!("/gpu/scanouts/{n}"), "");
        assert!(message.starts_with("There is no scanout "), "{message}");
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

#[test]
fn a_machine_that_is_gone_does_not_hang_a_client() {
    let (machine, requests) = channel().unwrap();
    drop(requests);
    let service = Service::new(machine, Arc::default(), 100);
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

/// One row for each action: where it is legal, by Firecracker's rules and our own.
#[test]
fn legality() {
    use Phase::{NotStarted, Paused, Running};
    let boot = BootSource { kernel_image_path: "/k".into(), initrd_path: None, boot_args: None };
    let balloon = BalloonConfig {
        amount_mib: 0,
        deflate_on_oom: false,
        stats_polling_interval_s: 0,
        free_page_hinting: false,
        free_page_reporting: false,
        blocks: true,
    };
    let gpu = GpuConfig { width_px: 1, height_px: 1, scanouts: 1, vnc_socket: None };
    let metrics =
        MetricsConfig { metrics_path: "/m".into(), emit_id: false, properties: Default::default() };
    let always: &[Phase] = &[NotStarted, Running, Paused];
    let before: &[Phase] = &[NotStarted];
    let after: &[Phase] = &[Running, Paused];
    let table = [
        (Action::Instance(InstanceAction::Get), always),
        (Action::Instance(InstanceAction::GetConfig), always),
        (Action::Machine(MachineAction::Get), always),
        (Action::Machine(MachineAction::Set(MachineConfig::default())), before),
        (Action::Machine(MachineAction::Update(MachineUpdate::default())), before),
        (Action::Memory(MemoryAction::Set(MemoryConfig::default())), before),
        (Action::Boot(BootAction::Set(boot)), before),
        (Action::Gpu(GpuAction::Set(gpu)), before),
        (Action::Balloon(BalloonAction::Get), always),
        (Action::Balloon(BalloonAction::Set(balloon)), before),
        (Action::Balloon(BalloonAction::Update(BalloonUpdate { amount_mib: 0 })), after),
        (Action::Balloon(BalloonAction::GetStatistics), after),
        (
            Action::Balloon(BalloonAction::UpdateStatistics(BalloonStatsUpdate {
                stats_polling_interval_s: 0,
            })),
            after,
        ),
        (Action::Balloon(BalloonAction::StartHinting(HintingStart::default())), after),
        (Action::Balloon(BalloonAction::GetHinting), after),
        (Action::Balloon(BalloonAction::StopHinting), after),
        (Action::Logger(LoggerAction::Set(LoggerConfig::default())), before),
        (Action::Metrics(MetricsAction::Set(metrics)), before),
        (Action::Metrics(MetricsAction::Get), always),
        (Action::Instance(InstanceAction::FlushMetrics), after),
        (Action::Instance(InstanceAction::Start), before),
        (Action::Instance(InstanceAction::Pause), after),
        (Action::Instance(InstanceAction::Resume), after),
        (Action::Instance(InstanceAction::SendCtrlAltDel), after),
        (Action::Instance(InstanceAction::Stop), always),
        (Action::Memory(MemoryAction::Get), after),
        (Action::Blocks(BlocksAction::Get), after),
        (
            Action::Evacuation(EvacuationAction::Evacuate(Evacuate { start: 0, blocks: 1 })),
            &[Running],
        ),
        (Action::Compaction(CompactionAction::Compact(Compact::default())), &[Running]),
        (Action::Compaction(CompactionAction::Get), after),
        (Action::Compaction(CompactionAction::Cancel), after),
        (Action::Cma(CmaAction::Get), after),
        (Action::Gpu(GpuAction::Get), after),
        (Action::Gpu(GpuAction::GetScanout(0)), after),
        (Action::Gpu(GpuAction::UpdateScanout(0, ScanoutUpdate { mode: None })), after),
    ];
    for (action, legal) in table {
        for &phase in always {
            let check = action.check(phase);
            assert_eq!(check.is_ok(), legal.contains(&phase), "{action:?} in {phase:?}");
            match (check, phase) {
                (Err(Refusal::BeforeStart), NotStarted) => {}
                (Err(Refusal::AfterStart), Running | Paused) => {}
                (Err(Refusal::WhilePaused), Paused) => {}
                (Ok(()), _) => {}
                (Err(other), _) => panic!("{action:?} in {phase:?}: {other:?}"),
            }
        }
    }
}

/// Every path of the description is served with its methods, and with no others.
#[test]
fn the_description_and_the_routes_agree() {
    let text: Value = serde_json::from_str(&openapi::json()).unwrap();
    let paths = text["paths"].as_object().unwrap();
    assert!(paths.len() >= 16);
    for (path, item) in paths {
        for method in ["GET", "PUT", "PATCH", "DELETE"] {
            // As in Firecracker, PUT /balloon ignores what follows.
            if method == "PUT" && path.starts_with("/balloon/") {
                continue;
            }
            let (_, reply, _) = send(method, path, if method == "GET" { "" } else { "{}" });
            let message = reply["fault_message"].as_str().unwrap_or_default();
            let served = !message.starts_with("Invalid request method and/or path");
            let described = item.get(method.to_lowercase()).is_some();
            assert_eq!(served, described, "{method} {path}");
        }
    }
}

/// An integer that cannot be negative has an unsigned format: a client made from the description
/// can then hold every value.
#[test]
fn unsigned_fields_have_unsigned_formats() {
    fn visit(value: &Value, path: &str, seen: &mut usize) {
        let types =
            value["type"].as_array().cloned().unwrap_or_else(|| vec![value["type"].clone()]);
        if types.contains(&"integer".into()) && value["minimum"].as_f64() >= Some(0.0) {
            let format = value["format"].as_str().unwrap_or_default();
            assert!(format.is_empty() || format.starts_with("uint"), "{path}: {format}");
            *seen += 1;
        }
        let fields = value.as_object().into_iter().flatten();
        fields.for_each(|(name, value)| visit(value, &format!("{path}/{name}"), seen));
        let elements = value.as_array().into_iter().flatten();
        elements.for_each(|value| visit(value, path, seen));
    }
    let description: Value = serde_json::from_str(&openapi::json()).unwrap();
    let mut seen = 0;
    visit(&description, "", &mut seen);
    assert!(seen >= 50, "{seen}");
    let field = &description["components"]["schemas"]["MachineConfig"]["properties"];
    assert_eq!(field["mem_size_mib"]["format"], "uint64");
    let field = &description["components"]["schemas"]["BalloonConfig"]["properties"];
    assert_eq!(field["amount_mib"]["format"], "uint32");
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

/// `resources/openapi.json` is what the handlers say. To renew it:
/// `cargo run -p ballast-vmm -- openapi > resources/openapi.json`.
#[test]
fn the_description_in_the_tree_is_true() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/openapi.json");
    let written = std::fs::read_to_string(file).unwrap();
    assert!(written == openapi::json(), "renew resources/openapi.json");
}
