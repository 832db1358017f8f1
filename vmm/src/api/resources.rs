// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The list of resources. A line here gives a resource its variant of [`Action`] and [`Reply`], its
//! routes and its part of the OpenAPI description. [`Action`] is the only vocabulary between the API
//! thread and the machine.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use utoipa::openapi::OpenApi;

use super::error::ApiError;
use super::handler::{Asker, NoReply};
use super::phase::{Phase, Phases};
use super::refusal::Refusal;

/// Passes an action of any resource to the machine.
pub(super) type AskAny = Arc<dyn Fn(Action) -> Replied + Send + Sync>;

/// A reply that is awaited.
type Replied = Pin<Box<dyn Future<Output = Result<Reply, Refusal>> + Send>>;

macro_rules! resources {
    ($($variant:ident: $module:ident { $action:ident $(, $reply:ident)? },)*) => {
        /// An action, by resource.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Action {
            $(#[doc = concat!("Of the resource `", stringify!($module), "`.")]
            $variant(super::$module::$action),)*
        }

        impl Action {
            /// The phases in which this may be asked.
            pub const fn legal_in(&self) -> Phases {
                match self {
                    $(Self::$variant(action) => action.legal_in(),)*
                }
            }
        }

        $(impl From<super::$module::$action> for Action {
            fn from(action: super::$module::$action) -> Self {
                Self::$variant(action)
            }
        })*

        /// The result of an action that succeeded.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Reply {
            /// Done, with nothing to report.
            Done,
            $($(#[doc = concat!("To a request of the resource `", stringify!($module), "`.")]
            $variant(super::$module::$reply),)?)*
        }

        $($(impl From<super::$module::$reply> for Reply {
            fn from(reply: super::$module::$reply) -> Self {
                Self::$variant(reply)
            }
        }

        impl TryFrom<Reply> for super::$module::$reply {
            type Error = Reply;

            fn try_from(reply: Reply) -> Result<Self, Reply> {
                match reply {
                    Reply::$variant(reply) => Ok(reply),
                    other => Err(other),
                }
            }
        })?)*

        /// The routes of all resources; their handlers reach the machine by `ask`.
        pub(super) fn routes(ask: &AskAny) -> Router {
            Router::new()$(.merge(super::$module::routes().with_state(asker(ask))))*
        }

        /// Adds the descriptions of all resources to `description`.
        pub(super) fn describe(description: &mut OpenApi) {
            $(description.merge(<super::$module::Description as utoipa::OpenApi>::openapi());)*
        }
    };
}

resources! {
    Instance: instance { InstanceAction, InstanceReply },
    Machine: machine_config { MachineAction, MachineReply },
    Boot: boot_source { BootAction },
    Balloon: balloon { BalloonAction, BalloonReply },
    Memory: memory { MemoryAction, MemoryReply },
    Evacuation: evacuation { EvacuationAction, EvacuationReply },
    Compaction: compaction { CompactionAction, CompactionReply },
    Paging: paging { PagingAction, PagingReply },
    Policy: policy { PolicyAction, PolicyReply },
    Blocks: blocks { BlocksAction, BlocksReply },
    Cma: cma { CmaAction, CmaReply },
    Gpu: gpu { GpuAction, GpuReply },
    Drives: drives { DriveAction },
    Network: network_interfaces { NetworkAction },
    Vsock: vsock { VsockAction },
    Mmds: mmds { MmdsAction, MmdsReply },
    Entropy: entropy { EntropyAction },
    Serial: serial { SerialAction },
    Logger: logger { LoggerAction },
    Metrics: metrics { MetricsAction, MetricsReply },
}

impl Action {
    /// Checks that this may be asked in `phase`.
    ///
    /// # Errors
    ///
    /// As [`Phases::check`].
    pub fn check(&self, phase: Phase) -> Result<(), Refusal> {
        self.legal_in().check(phase)
    }
}

impl TryFrom<Reply> for NoReply {
    type Error = Reply;

    fn try_from(reply: Reply) -> Result<Self, Reply> {
        Err(reply)
    }
}

/// Narrows `ask` to the actions of one resource.
fn asker<A, R>(ask: &AskAny) -> Asker<A, R>
where
    A: Into<Action> + 'static,
    R: TryFrom<Reply> + 'static,
{
    let ask = Arc::clone(ask);
    Asker::new(move |action: A| {
        let replied = ask(action.into());
        async move {
            match replied.await? {
                Reply::Done => Ok(None),
                reply => R::try_from(reply).map(Some).map_err(|_| ApiError::WrongReply),
            }
        }
    })
}
