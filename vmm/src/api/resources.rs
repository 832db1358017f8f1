// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The list of resources. A line here gives a resource its variant of [`Action`] and [`Reply`], its
//! routes and its part of the OpenAPI description.

use axum::Router;
use utoipa::openapi::OpenApi;

use super::action::Phases;
use super::channel::ActionSender;
use super::*;

macro_rules! resources {
    ($($variant:ident: $module:ident { $action:ident $(, $reply:ident)? },)*) => {
        /// One thing to do or to report, by resource.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Action {
            $(#[doc = concat!("Of the resource `", stringify!($module), "`.")]
            $variant($module::$action),)*
        }

        impl Action {
            /// The phases in which this may be asked.
            pub const fn legal_in(&self) -> Phases {
                match self {
                    $(Self::$variant(action) => action.legal_in(),)*
                }
            }
        }

        $(impl From<$module::$action> for Action {
            fn from(action: $module::$action) -> Self {
                Self::$variant(action)
            }
        })*

        /// The result of an action that succeeded.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Reply {
            /// Done, with nothing to report.
            Done,
            $($(#[doc = concat!("To a request of the resource `", stringify!($module), "`.")]
            $variant($module::$reply),)?)*
        }

        $($(impl From<$module::$reply> for Reply {
            fn from(reply: $module::$reply) -> Self {
                Self::$variant(reply)
            }
        }

        impl TryFrom<Reply> for $module::$reply {
            type Error = Reply;

            fn try_from(reply: Reply) -> Result<Self, Reply> {
                match reply {
                    Reply::$variant(reply) => Ok(reply),
                    other => Err(other),
                }
            }
        })?)*

        /// The routes of all resources.
        pub(super) fn routes() -> Router<ActionSender> {
            Router::new()$(.merge($module::routes()))*
        }

        /// Adds the descriptions of all resources to `description`.
        pub(super) fn describe(description: &mut OpenApi) {
            $(description.merge(<$module::Description as utoipa::OpenApi>::openapi());)*
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
    Blocks: blocks { BlocksAction, BlocksReply },
    Cma: cma { CmaAction, CmaReply },
    Gpu: gpu { GpuAction, GpuReply },
    Drives: drives { DriveAction },
    Network: network_interfaces { NetworkAction },
    Vsock: vsock { VsockAction },
    Entropy: entropy { EntropyAction },
    Serial: serial { SerialAction },
    Logger: logger { LoggerAction },
    Metrics: metrics { MetricsAction, MetricsReply },
}
