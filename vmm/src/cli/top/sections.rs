// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The figures of a snapshot in words, box by box.

use super::snapshot::TopSnapshot;
use crate::api::compaction::{CompactStatus, MemoryTotals};
use crate::api::paging::PagingStatus;
use crate::api::policy::PolicyStatus;

/// One box of figures.
pub(super) struct Section {
    pub(super) title: String,
    pub(super) lines: Vec<String>,
    /// Part and whole of a bar below the lines.
    pub(super) bar: Option<(u64, u64)>,
}

/// All figures next to the map.
pub(super) fn sections(now: &TopSnapshot) -> Vec<Section> {
    let mut all = Vec::new();
    let title = format!("{} · {} · {} vCPU", now.id, now.state, now.vcpus);
    let mut memory = Section { title, lines: Vec::new(), bar: None };
    match &now.memory {
        None => memory.lines.push("The machine has not been started.".into()),
        Some(m) => {
            let held = size(m.resident_bytes);
            memory.lines.push(format!("{held} of {} in host memory", size(m.total_bytes)));
            memory.lines.push(match m.huge_bytes {
                Some(huge) => {
                    format!("{} % of that in huge pages", percent(huge, m.resident_bytes))
                }
                None => "huge pages: unknown on this kernel".into(),
            });
            memory.lines.extend(now.paging.as_ref().and_then(parked));
            memory.bar = m.huge_bytes.map(|huge| (huge, m.resident_bytes));
        }
    }
    all.push(memory);
    if let (Some(balloon), Some(m)) = (&now.balloon, &now.memory) {
        let mut lines =
            vec![format!("{} of {} MiB asked for", size(m.ballooned_bytes), balloon.target_mib)];
        if let (Some(free), Some(available)) = (balloon.guest_free, balloon.guest_available) {
            lines.push(format!("guest: {} free, {} available", size(free), size(available)));
        }
        let bar = Some((m.ballooned_bytes, m.total_bytes));
        all.push(Section { title: "balloon".into(), lines, bar });
    }
    if let Some(cma) = &now.cma {
        let t = &cma.totals;
        let mut lines = vec![
            format!("{} at {:#x}", size(cma.size_bytes), cma.start),
            format!("{} backed, {} of it huge", size(t.resident_bytes), size(t.huge_bytes)),
            format!("{} ballooned, {} of GPU buffers", size(t.ballooned_bytes), size(t.gpu_bytes)),
        ];
        if let Some(told) = &cma.guest {
            lines.push(format!(
                "guest: {} free, {} lent",
                size(told.free_bytes),
                size(told.lent_bytes)
            ));
            lines.push(format!("{} in contiguous use", size(told.contiguous_bytes)));
        }
        all.push(Section { title: "CMA".into(), lines, bar: Some((t.huge_bytes, cma.size_bytes)) });
    }
    if let Some(gpu) = &now.gpu {
        let count = gpu.images.count + gpu.guest_blobs.count + gpu.host_blobs.count;
        let lines = vec![
            format!("{count} resources, {} of guest memory", size(gpu.backing_bytes)),
            format!("in {} pieces, {} in CMA", gpu.backing_runs, size(gpu.cma_pages * 4096)),
        ];
        all.push(Section { title: "GPU".into(), lines, bar: None });
    }
    if let Some(status) = &now.compaction {
        all.push(compaction(status));
    }
    if let Some(section) = now.policy.as_ref().and_then(policy) {
        all.push(section);
    }
    let host = &now.host;
    let mut lines = Vec::new();
    if let (Some(free), Some(available)) = (host.free, host.available) {
        lines.push(format!("{} free, {} available", size(free), size(available)));
    }
    lines.push(match (host.some, host.full) {
        (Some(some), Some(full)) => format!("waiting for memory: some {some} %, all {full} %"),
        _ => "pressure: unknown, the kernel has no PSI".into(),
    });
    let used = |total: u64| total.saturating_sub(host.available.unwrap_or(0));
    all.push(Section {
        title: "host".into(),
        lines,
        bar: host.total.map(|total| (used(total), total)),
    });
    all
}

/// Parked memory, once there was any.
fn parked(status: &PagingStatus) -> Option<String> {
    let active = status.active && (status.absent_bytes > 0 || status.counters.stored > 0);
    active.then(|| {
        let (away, pool) = (size(status.absent_bytes), size(status.pool_bytes));
        format!("{away} parked, in {pool} of the pool")
    })
}

/// The policy, unless it is off.
fn policy(status: &PolicyStatus) -> Option<Section> {
    status.active.then(|| {
        let preset = serde_json::json!(status.policy.preset);
        let title = format!(
            "policy {}: host {}, guest {}",
            preset.as_str().unwrap_or_default(),
            status.host_level,
            status.guest_state
        );
        let mut lines = vec![format!(
            "evicting costs {} of {} \u{2030} CPU",
            status.cpu_permille, status.cpu_limit_permille
        )];
        if let Some(last) = status.decisions.last() {
            lines.push(last.what.clone());
            lines.push(last.reason.clone());
        }
        Section { title, lines, bar: None }
    })
}

fn compaction(status: &CompactStatus) -> Section {
    let title = "compaction".to_owned();
    if status.running {
        let lines = vec![format!("{} of {} steps", status.done, status.planned)];
        return Section { title, lines, bar: Some((status.done, status.planned)) };
    }
    let lines = match &status.last {
        None => vec!["no pass so far".to_owned()],
        Some(last) => {
            let share = |t: &MemoryTotals| percent(t.huge_bytes, t.resident_bytes);
            vec![
                format!("last: {} steps in {} ms", last.planned, last.took_us / 1000),
                format!("huge: {} %, then {} %", share(&last.before), share(&last.after)),
            ]
        }
    };
    Section { title, lines, bar: None }
}

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(0)
}

/// Bytes in MiB, or in GiB from 10 of them on.
pub(super) fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mib if mib >= 10 << 10 => format!("{} GiB", mib >> 10),
        mib => format!("{mib} MiB"),
    }
}
