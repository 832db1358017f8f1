// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One monitor's life on the main thread: log, socket, machine, event loop, end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tracing::{info, warn};

use crate::api::server::{ApiService, Server, ServerError};
use crate::api::stats::ApiStats;
use crate::api::{self, FIRECRACKER_API_VERSION, Refusal};
use crate::config::{LoggerConfig, MetricsConfig, VmConfig};
use crate::control::{Controller, MonitorIdentity};
use crate::event_loop::{EventLoop, EventLoopError};
use crate::exit::ExitReason;
use crate::host::descriptor;
use crate::host::log::{Log, LogError};
use crate::host::open_files;
use crate::host::sockets::Listener;
use crate::host::terminal;
use crate::mmds::Mmds;
use crate::mode::{StartMode, die_of};
use crate::own_memory;
use crate::signals;

/// Name of a machine without a name, Firecracker's default.
pub const DEFAULT_ID: &str = "anonymous-instance";

/// Version of Ballast.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Timeout for writing the last log lines: on a busy host the thread that writes them may wait for a
/// CPU for longer than a reader that reads keeps it waiting.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// All that a monitor is started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    /// Name of the machine.
    pub id: String,
    /// The machine to start immediately; `None` waits for the API to configure it.
    pub config: Option<VmConfig>,
    /// The log; settings here override the configuration's section.
    pub logger: LoggerConfig,
    /// The metrics file; overrides the configuration's section.
    pub metrics: Option<MetricsConfig>,
    /// Where to serve the API, if anywhere.
    pub api_sock: Option<PathBuf>,
    /// Largest body of an API request, in bytes.
    pub max_payload_bytes: usize,
    /// Whether holds of locks and turns of event loops count CPU time, for measurements.
    pub count_cpu_time: bool,
    /// Metadata for the guest from the start on.
    pub metadata: Option<Value>,
    /// Limit on the size of metadata, in bytes; the limit on a request body by default.
    pub mmds_size_limit: Option<usize>,
    /// Whether to install seccomp filters, which do not exist yet.
    pub seccomp: bool,
    /// How it is started.
    pub mode: StartMode,
    /// Start time of this process from its parent, in microseconds of the monotonic clock, if
    /// given.
    pub start_time_us: Option<u64>,
    /// Flags that were accepted without effect.
    pub ignored: Vec<&'static str>,
}

/// Why a monitor did not start, or ended in error.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The name is not valid in Firecracker.
    #[error("--id {0}: give 1 to 64 letters, digits and hyphens")]
    Id(String),
    /// No log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// No API.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// No descriptors left for the monitor itself.
    #[error("cannot set up the monitor: {0}")]
    Host(std::io::Error),
    /// No event loop.
    #[error(transparent)]
    Events(#[from] EventLoopError),
    /// The machine, or another part of its configuration, cannot be started.
    #[error("{0}")]
    Start(Refusal),
}

impl Launch {
    /// Runs a monitor to its end; the status to exit with.
    ///
    /// # Errors
    ///
    /// [`LaunchError`]: the configuration or the host does not allow it.
    pub fn run(self) -> Result<u8, LaunchError> {
        self.check_id()?;
        if self.count_cpu_time {
            devices::virtio::count_cpu_time();
        }
        own_memory::use_one_arena();
        open_files::raise_limit();
        let mut events = EventLoop::new()?;
        // Before any other thread: even the log has one.
        signals::start(self.mode, events.handle().exit()).map_err(LaunchError::Host)?;
        let log = Log::init(self.mode, &self.id);
        let logger = self.effective_logger();
        log.apply(&logger)?;
        if self.mode == StartMode::Firecracker {
            // Clients wait for this line, and for that of the server below.
            info!("Running Firecracker v{FIRECRACKER_API_VERSION} (Ballast v{VERSION})");
        }
        for flag in &self.ignored {
            warn!(flag, "accepted without effect");
        }

        let stats = Arc::new(ApiStats::default());
        let (mut machine, requests) = api::channel().map_err(LaunchError::Host)?;
        machine.stops_by(Arc::clone(events.handle().exit()));
        // Bound before any slow step: a path in use is the most common mistake.
        let mut socket =
            self.api_sock.as_deref().map(Listener::bind).transpose().map_err(ServerError::from)?;
        if let Some(socket) = socket.as_mut().filter(|_| self.mode.keeps_socket()) {
            socket.file.keep();
        }
        let starts = self.config.is_some();
        let config = VmConfig {
            logger: Some(logger).filter(|logger| *logger != LoggerConfig::default()),
            ..self.config.unwrap_or_default()
        };
        let metrics = self.metrics.or(config.metrics);
        let mut controller = Controller::new(
            MonitorIdentity { mode: self.mode, id: self.id, start_time_us: self.start_time_us },
            VmConfig { metrics: None, ..config },
            events.handle(),
            requests,
            log.clone(),
            Arc::clone(&stats),
            Mmds::new(self.mmds_size_limit.unwrap_or(self.max_payload_bytes)),
        )
        .map_err(LaunchError::Host)?;
        if let Some(metadata) = self.metadata {
            controller.set_metadata(metadata).map_err(LaunchError::Start)?;
        }
        if let Some(metrics) = metrics {
            controller.set_metrics(metrics).map_err(LaunchError::Start)?;
        }
        let server = socket
            .map(|socket| {
                let service = ApiService::new(machine, stats, self.max_payload_bytes);
                let exit = Arc::clone(events.handle().exit());
                Server::spawn(socket, self.mode.api_thread(), exit, service)
            })
            .transpose()?;
        if server.is_some() {
            info!("API server started.");
        }
        let started = if starts { controller.start() } else { Ok(()) };
        own_memory::give_back_start_up();
        let ended = match started {
            Ok(()) => {
                events.add(Box::new(controller));
                Ok(events.run())
            }
            Err(refusal) => {
                drop(controller);
                Err(LaunchError::Start(refusal))
            }
        };
        // Drop the machine first, so that pending requests fail.
        drop(events);
        if let Some(server) = server {
            server.stop();
        }
        terminal::restore();
        let reason = ended?;
        self.mode.farewell(&reason);
        Self::tell(&reason, &log);
        if let Some(signal) = self.mode.dies_of(&reason) {
            die_of(signal);
        }
        Ok(self.mode.exit_code(&reason))
    }

    fn effective_logger(&self) -> LoggerConfig {
        let below = self.config.as_ref().and_then(|config| config.logger.clone());
        let below = below.unwrap_or_default();
        let above = self.logger.clone();
        LoggerConfig {
            log_path: above.log_path.or(below.log_path),
            level: above.level.or(below.level),
            show_level: above.show_level.or(below.show_level),
            show_log_origin: above.show_log_origin.or(below.show_log_origin),
            module: above.module.or(below.module),
        }
    }

    fn check_id(&self) -> Result<(), LaunchError> {
        let fits = (1..=64).contains(&self.id.len())
            && self.id.chars().all(|letter| letter.is_alphanumeric() || letter == '-');
        if fits { Ok(()) } else { Err(LaunchError::Id(self.id.clone())) }
    }

    /// Says why it ended: to the log, and in one line on standard error.
    fn tell(reason: &ExitReason, log: &Log) {
        if reason.code() == 0 {
            info!(%reason, "the machine has stopped");
        } else {
            tracing::error!(%reason, "the machine has stopped");
        }
        log.flush(LAST_WORDS);
        descriptor::say(&reason.to_string());
    }
}
