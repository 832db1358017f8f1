// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory/policy`: automatic reclaim and return of memory. Ballast extension.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::Body;
use super::error::FaultMessage;
use super::handler::{Asker, HandlerResult, done, reported};
use super::phase::Phases;
use crate::config::PolicyConfig;

/// Actions on the memory policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyAction {
    /// Its state and decisions: [`PolicyReply`].
    Get,
    /// Sets it.
    Set(PolicyConfig),
}

impl PolicyAction {
    /// The phases in which this may be asked.
    pub const fn legal_in(&self) -> Phases {
        Phases::ANY
    }
}

/// Reply to [`PolicyAction::Get`].
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyReply(pub Box<PolicyStatus>);

/// State of the memory policy (`GET /memory/policy`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PolicyStatus {
    /// The policy as configured.
    pub policy: PolicyConfig,
    /// Whether a policy other than `off` is set.
    pub active: bool,
    /// Owner of the balloon's target: `policy`, `client` after a `PATCH /balloon`, or `none` if the
    /// guest has no balloon.
    pub balloon_owner: String,
    /// The balloon's target, in bytes.
    pub balloon_target_bytes: u64,
    /// `comfortable`, `tight` or `short`.
    pub host_level: String,
    /// Memory available to the host or to the monitor's control group, in bytes; `null` if unknown.
    pub host_available_bytes: Option<u64>,
    /// The host is short of memory below this, and tight below twice this.
    pub host_reserve_bytes: u64,
    /// Share of the last ten seconds in which some host task stalled on memory, in percent; `null`
    /// if the kernel has no PSI.
    pub host_stall_percent: Option<f64>,
    /// `unknown`, `easy`, `tense` or `hurt`.
    pub guest_state: String,
    /// Memory that the guest reports as available, in bytes; `null` without statistics.
    pub guest_available_bytes: Option<u64>,
    /// Resident guest memory.
    pub resident_bytes: u64,
    /// Guest memory that is parked or on probation.
    pub absent_bytes: u64,
    /// Guest memory that always stays resident.
    pub floor_bytes: u64,
    /// Why cold memory cannot be evicted, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_eviction: Option<String>,
    /// Rounds without inflation left, because the guest was short of memory.
    pub balloon_pause_rounds: u32,
    /// Rounds without eviction left, because the guest accessed evicted blocks.
    pub eviction_pause_rounds: u32,
    /// CPU time spent on eviction and on bringing blocks back since the policy started, in
    /// microseconds.
    pub cpu_us: u64,
    /// The same as a share of one CPU, per mille.
    pub cpu_permille: u64,
    /// Limit on that share, per mille.
    pub cpu_limit_permille: u64,
    /// Counters since the policy started.
    pub counters: PolicyCounters,
    /// The last decisions, the oldest first.
    pub decisions: Vec<PolicyDecision>,
}

/// Counters of the policy since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyCounters {
    /// Rounds.
    pub rounds: u64,
    /// Rounds in which the guest was short of memory.
    pub guest_hurt: u64,
    /// Number of times that the policy inflated the balloon.
    pub balloon_raised: u64,
    /// Number of times that the policy deflated the balloon.
    pub balloon_lowered: u64,
    /// Requests for free page hints.
    pub hints: u64,
    /// Scans for ballooned pages that are still resident.
    pub discards: u64,
    /// Number of times that parked memory was brought back.
    pub unparks: u64,
    /// Decisions that could not be carried out.
    pub failures: u64,
    /// Rounds of probation.
    pub trials: u64,
    /// 2 MiB blocks put on probation.
    pub blocks_tried: u64,
    /// Blocks on probation that were then compressed.
    pub blocks_evicted: u64,
    /// Blocks on probation that the guest accessed.
    pub blocks_returned: u64,
    /// Blocks on probation that were pinned, in small pages, or not compressible.
    pub blocks_unfit: u64,
    /// Blocks compressed at once, in whole or in part, because the host was short.
    pub blocks_relieved: u64,
}

/// A decision of the policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyDecision {
    /// Its number, from 1.
    pub number: u64,
    /// Time of the decision, in milliseconds since 1970.
    pub time_ms: u64,
    /// `discard`, `hint`, `balloon`, `evict` or `unpark`.
    pub action: String,
    /// Description of the decision, with amounts.
    pub what: String,
    /// Why.
    pub reason: String,
    /// Error, if the decision failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// How handlers reach the machine.
type Machine = State<Asker<PolicyAction, PolicyReply>>;

pub(super) fn routes() -> Router<Asker<PolicyAction, PolicyReply>> {
    Router::new().route("/memory/policy", get(get_policy).put(put_policy))
}

/// This resource in the OpenAPI description.
#[derive(utoipa::OpenApi)]
#[openapi(paths(get_policy, put_policy))]
pub(super) struct Description;

/// State of the memory policy, and its last decisions with reasons.
#[utoipa::path(get, path = "/memory/policy", tag = "memory",
    responses((status = 200, body = PolicyStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_policy(State(machine): Machine) -> HandlerResult {
    reported!(machine, PolicyAction::Get, PolicyReply)
}

/// Sets the memory policy, before or after the start. The policy then sets the balloon's target,
/// until a client does.
#[utoipa::path(put, path = "/memory/policy", tag = "memory", request_body = PolicyConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_policy(
    State(machine): Machine,
    Body(body): Body<PolicyConfig>,
) -> HandlerResult {
    done(&machine, PolicyAction::Set(body)).await
}
