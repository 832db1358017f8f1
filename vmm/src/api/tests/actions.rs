// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The actions that accepted requests send to the machine.

use http::StatusCode;
use serde_json::json;

use super::*;
use crate::api::boot_source::*;
use crate::api::drives::*;
use crate::api::logger::*;

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
    // Like Firecracker, this one accepts unknown fields.
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
