// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/memory/policy`: memory is taken and given back unasked. Ballast's own.

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
    /// What it sees and has done: [`PolicyReply`].
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

/// What the policy sees and has done (`GET /memory/policy`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PolicyStatus {
    /// As it was set.
    pub policy: PolicyConfig,
    /// Whether it is at work: the machine was started with a policy other than `off`, or has got one.
    pub active: bool,
    /// Who sets the balloon's target: `policy`, `client` after a `PATCH /balloon`, or `none` if the
    /// guest has no balloon.
    pub balloon_owner: String,
    /// The balloon's target, in bytes.
    pub balloon_target_bytes: u64,
    /// `comfortable`, `tight` or `short`.
    pub host_level: String,
    /// Memory that the host, or the control group of the monitor, has available, in bytes; `null` if
    /// it does not say.
    pub host_available_bytes: Option<u64>,
    /// Below this the host is short, and below twice of it tight.
    pub host_reserve_bytes: u64,
    /// Share of the last ten seconds in which some task of the host waited for memory, in per cent;
    /// `null` if its kernel does not tell (PSI).
    pub host_stall_percent: Option<f64>,
    /// `unknown`, `easy`, `tense` or `hurt`.
    pub guest_state: String,
    /// Memory that the guest says it has available, in bytes; `null` without statistics.
    pub guest_available_bytes: Option<u64>,
    /// Guest memory in host memory.
    pub resident_bytes: u64,
    /// Guest memory that is parked or on trial.
    pub absent_bytes: u64,
    /// What stays in host memory.
    pub floor_bytes: u64,
    /// Why cold memory is not evicted, if it cannot be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_eviction: Option<String>,
    /// Rounds for which the balloon is not made larger, since the guest was hurt.
    pub balloon_pause_rounds: u32,
    /// Rounds for which nothing is evicted, since the guest wanted blocks back.
    pub eviction_pause_rounds: u32,
    /// Processor time spent on eviction and bringing back since the policy started, in microseconds.
    pub cpu_us: u64,
    /// The same as a share of one processor, per mille.
    pub cpu_permille: u64,
    /// The share that it may have, per mille.
    pub cpu_limit_permille: u64,
    /// What was done since the policy started.
    pub counters: PolicyCounters,
    /// The last decisions, the oldest first.
    pub decisions: Vec<PolicyDecision>,
}

/// What a policy has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyCounters {
    /// Rounds.
    pub rounds: u64,
    /// Rounds in which the guest was hurt.
    pub guest_hurt: u64,
    /// Times that the balloon was made larger.
    pub balloon_raised: u64,
    /// Times that it was made smaller.
    pub balloon_lowered: u64,
    /// Requests for hints at free pages.
    pub hints: u64,
    /// Searches for resident pages of the balloon.
    pub discards: u64,
    /// Times that parked memory was brought back.
    pub unparks: u64,
    /// Decisions that could not be carried out.
    pub failures: u64,
    /// Rounds of trials.
    pub trials: u64,
    /// Blocks of 2 MiB on trial so far.
    pub blocks_tried: u64,
    /// Of those, compressed.
    pub blocks_evicted: u64,
    /// Of those, wanted back by the guest.
    pub blocks_returned: u64,
    /// Of those, pinned, in small pages, or not compressible.
    pub blocks_unfit: u64,
}

/// Something that the policy did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyDecision {
    /// Its number, from 1.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// `discard`, `hint`, `balloon`, `evict` or `unpark`.
    pub action: String,
    /// The same in words, with its amounts.
    pub what: String,
    /// Why.
    pub reason: String,
    /// Why it could not be carried out, if so.
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

/// What the memory policy sees, and its last decisions with their reasons.
#[utoipa::path(get, path = "/memory/policy", tag = "memory",
    responses((status = 200, body = PolicyStatus), (status = 400, body = FaultMessage)))]
pub(super) async fn get_policy(State(machine): Machine) -> HandlerResult {
    reported!(machine, PolicyAction::Get, PolicyReply)
}

/// Sets the memory policy, before the start or after. The balloon is the policy's from then on, until
/// a client sets its target.
#[utoipa::path(put, path = "/memory/policy", tag = "memory", request_body = PolicyConfig,
    responses((status = 204), (status = 400, body = FaultMessage)))]
pub(super) async fn put_policy(
    State(machine): Machine,
    Body(body): Body<PolicyConfig>,
) -> HandlerResult {
    done(&machine, PolicyAction::Set(body)).await
}
