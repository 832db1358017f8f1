// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything that is shown, as of one moment.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::cma::CmaStatus;
use crate::api::compaction::CompactStatus;
use crate::api::gpu::GpuStatus;
use crate::api::memory::MemoryStatus;
use crate::api::paging::PagingStatus;
use crate::api::policy::PolicyStatus;
use crate::block_view::BlockRuns;
use crate::cli::client::ClientError;
use crate::cli::error::CliError;
use crate::cli::target::Target;
use crate::host::memory_figures::HostFigures;

/// Data from the monitor and the host.
#[derive(Debug, Clone, Default)]
pub(super) struct TopSnapshot {
    pub(super) id: String,
    pub(super) state: String,
    pub(super) vcpus: u64,
    pub(super) memory: Option<MemoryStatus>,
    pub(super) blocks: BlockRuns,
    pub(super) balloon: Option<BalloonFigures>,
    pub(super) cma: Option<CmaStatus>,
    pub(super) gpu: Option<GpuStatus>,
    pub(super) compaction: Option<CompactStatus>,
    pub(super) paging: Option<PagingStatus>,
    pub(super) policy: Option<PolicyStatus>,
    pub(super) host: HostFigures,
    /// The monitor's last error.
    pub(super) said: Option<String>,
}

/// The balloon, if it reports.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BalloonFigures {
    pub(super) target_mib: u64,
    /// Free and available memory reported by the guest, in bytes; only with statistics.
    pub(super) guest_free: Option<u64>,
    pub(super) guest_available: Option<u64>,
}

impl TopSnapshot {
    /// Asks for all of it. A part that the machine does not have, or not yet, is left out.
    pub(super) fn take(target: &Target) -> Result<Self, CliError> {
        let instance = target.get("/")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let machine = target.get("/machine-config")?;
        let blocks = match optional(target.get_bytes("/memory/blocks", "application/octet-stream"))?
        {
            Some(bytes) => {
                BlockRuns::from_bytes(&bytes).map_err(|e| CliError::Reply(e.to_string()))?
            }
            None => BlockRuns::default(),
        };
        Ok(Self {
            id: text(&instance["id"]),
            state: text(&instance["state"]),
            vcpus: machine["vcpu_count"].as_u64().unwrap_or(0),
            memory: part(target, "/memory")?,
            blocks,
            balloon: balloon(target)?,
            cma: part(target, "/memory/cma")?,
            gpu: part(target, "/gpu")?,
            compaction: part(target, "/memory/compact")?,
            paging: part(target, "/memory/paging")?,
            policy: part(target, "/memory/policy")?,
            host: HostFigures::read(),
            said: None,
        })
    }
}

/// The answer, or nothing if the monitor refuses.
fn optional<T>(answer: Result<T, CliError>) -> Result<Option<T>, CliError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(CliError::Client(ClientError::Refused(_))) => Ok(None),
        Err(error) => Err(error),
    }
}

fn part<T: DeserializeOwned>(target: &Target, resource: &str) -> Result<Option<T>, CliError> {
    let Some(value) = optional(target.get(resource))? else { return Ok(None) };
    let broken = |error| CliError::Reply(format!("{resource}: {error}"));
    serde_json::from_value(value).map(Some).map_err(broken)
}

fn balloon(target: &Target) -> Result<Option<BalloonFigures>, CliError> {
    let Some(config) = optional(target.get("/balloon"))? else { return Ok(None) };
    let guest = optional(target.get("/balloon/statistics"))?.unwrap_or_default();
    Ok(Some(BalloonFigures {
        target_mib: config["amount_mib"].as_u64().unwrap_or(0),
        guest_free: guest["free_memory"].as_u64(),
        guest_available: guest["available_memory"].as_u64(),
    }))
}
