// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which action is allowed in which phase.

use super::*;
use crate::api::boot_source::*;
use crate::api::cma::*;
use crate::api::compaction::*;
use crate::api::evacuation::*;
use crate::api::logger::*;

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
