// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The routes over a real channel, with a thread that stands in for the machine, but no socket.
//!
//! - `actions.rs`: actions sent to the machine
//! - `answers.rs`: responses to clients
//! - `rejected.rs`: requests that never reach the machine
//! - `legality.rs`: which action is allowed in which phase
//! - `description.rs`: the OpenAPI document

mod actions;
mod answers;
mod description;
mod legality;
mod rejected;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use devices::display::{Area, Frame, Pixels, PngFile, Size, encode_png};
use devices::virtio::{Deadline, Progress};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::balloon::*;
use super::blocks::*;
use super::channel::Request as Asked;
use super::gpu::*;
use super::instance::*;
use super::machine_config::*;
use super::memory::*;
use super::metrics::*;
use super::server::{ApiService, DEFAULT_MAX_PAYLOAD_BYTES};
use super::*;
use crate::block_view::{BlockRun, BlockRuns};
use crate::config::*;

/// A machine's end of the channel that records every action and returns plausible replies.
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

/// Sends one request through everything except the socket; returns the status, the body and the
/// actions sent to the machine.
fn send_in(
    phase: Phase,
    method: &str,
    path: &str,
    body: impl Into<Bytes>,
) -> (StatusCode, Value, Vec<Action>) {
    let (machine, responder) = Responder::start(phase);
    let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
    let service = ApiService::new(machine.clone(), Arc::default(), DEFAULT_MAX_PAYLOAD_BYTES);
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
