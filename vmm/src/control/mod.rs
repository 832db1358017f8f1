// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Performs requests: actions of the API and the command line become calls on the machine and its
//! devices, and their results become wire types. Runs on the main thread, as a subscriber of the
//! event loop.
//!
//! May use: everything in this crate except `api`'s server and `cli`. Never waits: long operations
//! reply later, from the thread that has the result.
//!
//! - `instance.rs`: start, pause, stop, the whole configuration
//! - `machine_config.rs`, `boot_source.rs`, `balloon.rs`, `memory.rs`, `evacuation.rs`,
//!   `compaction.rs`, `paging.rs`, `policy.rs`, `blocks.rs`, `cma.rs`, `gpu.rs`, `drives.rs`, `entropy.rs`,
//!   `network_interfaces.rs`, `serial.rs`, `vsock.rs`, `mmds.rs`,
//!   `logger.rs`, `metrics.rs`: one resource each
//! - `metrics_writer.rs`: the lines of the metrics file

mod balloon;
mod blocks;
mod boot_source;
mod cma;
mod compaction;
mod drives;
mod entropy;
mod evacuation;
mod gpu;
mod instance;
mod logger;
mod machine_config;
mod memory;
mod metrics;
mod metrics_writer;
mod mmds;
mod network_interfaces;
mod paging;
mod policy;
mod serial;
mod vsock;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use tracing::error;

use crate::api::channel::{ReplySender, Request};
use crate::api::stats::ApiStats;
use crate::api::{Action, ActionReceiver, Phase, Refusal, Reply};
use crate::compactor::Compactor;
use crate::config::{HostLimits, VmConfig};
use crate::event_loop::LoopHandle;
use crate::exit::ExitReason;
use crate::host::log::Log;
use crate::machine::Vm;
use crate::mmds::Mmds;
use crate::mode::StartMode;
use crate::parking::Parking;
use crate::pressure::MemoryPolicy;

use metrics_writer::MetricsWriter;

/// How the monitor was started.
#[derive(Debug, Clone, Default)]
pub struct MonitorIdentity {
    /// In whose place.
    pub mode: StartMode,
    /// Name of the machine.
    pub id: String,
    /// Start time of this process from its parent, in microseconds of the monotonic clock, if
    /// given.
    pub start_time_us: Option<u64>,
}

/// Owns the machine, and its description before it is started.
pub struct Controller {
    mode: StartMode,
    id: String,
    config: VmConfig,
    host: HostLimits,
    // Before the compactor, whose thread it uses.
    policy: Option<MemoryPolicy>,
    // Before the machine: its thread uses the machine's memory and devices.
    compactor: Option<Compactor>,
    vm: Option<Vm>,
    // After the machine: its vCPUs and devices may wait for pages.
    parking: Option<Parking>,
    events: LoopHandle,
    requests: ActionReceiver,
    log: Log,
    metrics: MetricsWriter,
    mmds: Mmds,
}

impl Controller {
    /// A controller of a machine with the initial configuration `config`.
    ///
    /// # Errors
    ///
    /// The host has no more file descriptors.
    pub fn new(
        identity: MonitorIdentity,
        config: VmConfig,
        events: LoopHandle,
        requests: ActionReceiver,
        log: Log,
        api_stats: Arc<ApiStats>,
        mmds: Mmds,
    ) -> std::io::Result<Self> {
        Ok(Self {
            mode: identity.mode,
            id: identity.id,
            config,
            host: HostLimits::read(),
            policy: None,
            compactor: None,
            vm: None,
            parking: None,
            events,
            requests,
            log,
            metrics: MetricsWriter::new(api_stats, identity.start_time_us)?,
            mmds,
        })
    }

    fn phase(&self) -> Phase {
        match &self.vm {
            None => Phase::NotStarted,
            Some(vm) if vm.paused() => Phase::Paused,
            Some(_) => Phase::Running,
        }
    }

    fn serve(&mut self, request: Request) {
        let Request { action, asked, reply } = request;
        match action.check(self.phase()) {
            Ok(()) => self.perform(action, asked, reply),
            Err(refusal) => reply.send(Err(refusal)),
        }
    }

    /// The list of resources, one line each.
    fn perform(&mut self, action: Action, asked: Instant, reply: ReplySender) {
        match action {
            Action::Instance(action) => reply.send(self.instance_action(action, asked)),
            Action::Machine(action) => reply.send(self.machine_action(action)),
            Action::Boot(action) => reply.send(self.boot_action(action)),
            Action::Balloon(action) => reply.send(self.balloon_action(action)),
            Action::Memory(action) => self.memory_action(action, reply),
            Action::Evacuation(action) => self.evacuation_action(action, reply),
            Action::Compaction(action) => self.compaction_action(action, reply),
            Action::Paging(action) => self.paging_action(action, reply),
            Action::Policy(action) => reply.send(self.policy_action(action)),
            Action::Blocks(action) => self.blocks_action(action, reply),
            Action::Cma(action) => self.cma_action(action, reply),
            Action::Gpu(action) => reply.send(self.gpu_action(action)),
            Action::Drives(action) => reply.send(self.drive_action(action)),
            Action::Network(action) => reply.send(self.network_action(action)),
            Action::Vsock(action) => reply.send(self.vsock_action(action)),
            Action::Mmds(action) => reply.send(self.mmds_action(action)),
            Action::Entropy(action) => reply.send(self.entropy_action(action)),
            Action::Serial(action) => reply.send(self.serial_action(action)),
            Action::Logger(action) => reply.send(self.logger_action(action)),
            Action::Metrics(action) => reply.send(self.metrics_action(action)),
        }
    }

    /// Changes the configuration unless the result violates a rule of `config`. Missing parts are
    /// checked at the start.
    fn configure(&mut self, change: impl FnOnce(&mut VmConfig)) -> Result<Reply, Refusal> {
        let mut config = self.config.clone();
        change(&mut config);
        config.validate_change(&self.config, &self.host).map_err(Refusal::Invalid)?;
        self.config = config;
        Ok(Reply::Done)
    }

    fn vm(&self) -> Result<&Vm, Refusal> {
        self.vm.as_ref().ok_or(Refusal::BeforeStart)
    }
}

impl MutEventSubscriber for Controller {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in [self.requests.as_raw_fd(), self.metrics.timer()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                error!(%error, "cannot watch for requests");
                self.events.exit().raise(ExitReason::HostError(error.to_string()));
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let fd: RawFd = events.fd();
        if fd == self.metrics.timer() {
            self.on_metrics_timer();
            return;
        }
        self.requests.acknowledge();
        while let Some(request) = self.requests.take() {
            self.serve(request);
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.write_last_metrics();
    }
}

/// Usable after a panic in another thread: a reply is either present or not.
fn lock<T>(reply: &Mutex<T>) -> MutexGuard<'_, T> {
    reply.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hot-unplug needs PCI, which this machine does not have.
fn no_hot_unplug() -> Refusal {
    Refusal::Failed("Devices cannot be removed from a running microVM without PCI.".into())
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::Failed(error.to_string())
}

fn done<E: std::fmt::Display>(result: Result<(), E>) -> Result<Reply, Refusal> {
    result.map(|()| Reply::Done).map_err(failed)
}
