// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one match over actions: what the API and the command line ask for becomes calls on the
//! machine and its devices. Runs on the main thread, as a subscriber of the event loop.

mod compaction;
mod evacuation;
mod gpu;

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::balloon::{Balloon, Statistics};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use mm::units::Pages;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde_json::{Map, Value, json};
use tracing::{error, info, warn};

use crate::api::action::{BalloonStats, GuestStats, HintingStatus, Instance, MemoryStatus};
use crate::api::channel::Request;
use crate::api::stats::ApiStats;
use crate::api::{Action, Phase, Refusal, Reply, Requests};
use crate::compactor::Compactor;
use crate::config::{BalloonConfig, Faults, HostLimits, MetricsConfig, VmConfig};
use crate::event_loop::LoopHandle;
use crate::exit::ExitReason;
use crate::host::log::Log;
use crate::machine;
use crate::machine::Vm;
use crate::metrics::{self, MetricsFile};
use crate::vcpu::ExitKind;

/// Pages of 4 KiB in one MiB.
const PAGES_PER_MIB: u64 = 256;

/// Owns the machine, and its description before there is one.
pub struct Controller {
    id: String,
    config: VmConfig,
    host: HostLimits,
    // Before the machine: its thread uses the machine's memory and devices.
    compactor: Option<Compactor>,
    vm: Option<Vm>,
    events: LoopHandle,
    requests: Requests,
    log: Log,
    api_stats: Arc<ApiStats>,
    metrics: Option<MetricsFile>,
    metrics_timer: OwnedFd,
}

impl Controller {
    /// A controller of a machine that is described by `config` so far.
    pub fn new(
        id: String,
        config: VmConfig,
        events: LoopHandle,
        requests: Requests,
        log: Log,
        api_stats: Arc<ApiStats>,
    ) -> std::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            id,
            config,
            host: HostLimits::read(),
            compactor: None,
            vm: None,
            events,
            requests,
            log,
            api_stats,
            metrics: None,
            metrics_timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
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
        let Request { action, answer } = request;
        if let Err(refusal) = action.check(self.phase()) {
            return answer.give(Err(refusal));
        }
        match action {
            // The two that may be answered later.
            Action::Compact(wanted) => self.compact(&wanted, answer),
            Action::Evacuate(wanted) => self.evacuate(wanted, answer),
            action => answer.give(self.act(action)),
        }
    }

    fn act(&mut self, action: Action) -> Result<Reply, Refusal> {
        match action {
            Action::GetInstance => Ok(Reply::Instance(self.instance())),
            Action::GetConfig => Ok(Reply::Config(Box::new(self.current_config()))),
            Action::GetMachine => Ok(Reply::Machine(self.config.machine_config.clone())),
            Action::SetMachine(machine) => self.set(|config| config.machine_config = machine),
            Action::UpdateMachine(update) => self.set(|config| config.machine_config.apply(update)),
            Action::SetMemory(memory) => self.set(|config| config.memory = memory),
            Action::SetBootSource(boot) => self.set(|config| config.boot_source = Some(boot)),
            Action::SetGpu(gpu) => self.set(|config| config.gpu = Some(gpu)),
            Action::SetBalloon(balloon) => self.set(|config| config.balloon = Some(balloon)),
            Action::GetBalloon => self.balloon_config().map(Reply::Balloon),
            Action::UpdateBalloon(update) => self.set_balloon_target(update.amount_mib),
            Action::GetBalloonStats => self.balloon_stats(),
            Action::UpdateBalloonStats(update) => {
                let interval = Duration::from_secs(update.stats_polling_interval_s.into());
                done(self.balloon()?.set_stats_interval(interval))
            }
            Action::StartHinting(how) => {
                done(self.balloon()?.start_hinting(how.acknowledge_on_stop))
            }
            Action::GetHinting => self.hinting(),
            Action::StopHinting => done(self.balloon()?.stop_hinting()),
            Action::SetLogger(logger) => {
                self.log.apply(&logger).map_err(failed)?;
                self.config.logger = Some(logger);
                Ok(Reply::Done)
            }
            Action::SetMetrics(metrics) => self.set_metrics(metrics).map(|()| Reply::Done),
            Action::GetMetrics => Ok(Reply::Metrics(self.totals())),
            Action::FlushMetrics => self.flush_metrics().map(|()| Reply::Done),
            Action::Start => self.start().map(|()| Reply::Done),
            Action::Pause => self.machine(|vm| vm.pause()),
            Action::Resume => self.machine(|vm| vm.resume()),
            Action::SendCtrlAltDel => done(self.vm()?.send_ctrl_alt_del()),
            Action::Stop => {
                self.events.exit().raise(ExitReason::Stopped("a request".into()));
                Ok(Reply::Done)
            }
            Action::GetMemory => self.memory(),
            Action::Compact(_) | Action::Evacuate(_) => Err(Refusal::NoAnswer),
            Action::GetCompaction => self.compaction_status(),
            Action::CancelCompaction => self.cancel_compaction(),
            Action::GetBlocks => self.blocks(),
            Action::GetCma => self.cma(),
            Action::GetGpu => self.gpu_status().map(|status| Reply::Gpu(Box::new(status))),
            Action::GetScanout(n) => self.picture(n),
            Action::UpdateScanout(n, update) => self.set_mode(n, update),
        }
    }

    fn instance(&self) -> Instance {
        Instance {
            app_name: "Ballast".into(),
            id: self.id.clone(),
            state: self.phase(),
            vmm_version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Builds the machine that the configuration describes, and lets it run.
    pub fn start(&mut self) -> Result<(), Refusal> {
        self.config.validate(&self.host).map_err(Refusal::Invalid)?;
        let mut vm = machine::build(&self.config, &self.events).map_err(failed)?;
        vm.start().map_err(failed)?;
        let machine = &self.config.machine_config;
        info!(id = self.id, vcpus = machine.vcpu_count, mib = machine.mem_size_mib, "started");
        self.vm = Some(vm);
        if self.config.memory.compaction.is_some() {
            self.compactor()?;
        }
        Ok(())
    }

    /// Opens the metrics file; once.
    pub fn set_metrics(&mut self, config: MetricsConfig) -> Result<(), Refusal> {
        if self.metrics.is_some() {
            return Err(Refusal::Failed("The metrics file is set already.".into()));
        }
        self.metrics = Some(MetricsFile::open(config.clone(), &self.id).map_err(failed)?);
        self.config.metrics = Some(config);
        let seconds = i64::try_from(metrics::PERIOD.as_secs()).unwrap_or(i64::MAX);
        let period = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let every = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&self.metrics_timer, TimerfdTimerFlags::empty(), &every).map_err(failed)?;
        Ok(())
    }

    /// Changes the description, unless what is said in it by then is wrong. What is missing, or
    /// depends on what may still come, is judged at the start.
    fn set(&mut self, change: impl FnOnce(&mut VmConfig)) -> Result<Reply, Refusal> {
        let mut config = self.config.clone();
        change(&mut config);
        let mut faults = Faults::default();
        config.machine_config.validate(&self.host, &mut faults);
        if let Some(balloon) = &config.balloon {
            balloon.validate(&config.machine_config, &mut faults);
        }
        if let Some(gpu) = &config.gpu {
            gpu.validate(&mut faults);
        }
        if config.boot_source != self.config.boot_source
            && let Some(boot) = &config.boot_source
        {
            boot.validate(&mut faults);
        }
        faults.into_result().map_err(Refusal::Invalid)?;
        self.config = config;
        Ok(Reply::Done)
    }

    /// The configuration, as it would make the machine that there is now.
    fn current_config(&self) -> VmConfig {
        VmConfig { balloon: self.balloon_config().ok(), ..self.config.clone() }
    }

    fn vm(&self) -> Result<&Vm, Refusal> {
        self.vm.as_ref().ok_or(Refusal::BeforeStart)
    }

    fn machine(&self, act: impl FnOnce(&Vm)) -> Result<Reply, Refusal> {
        act(self.vm()?);
        Ok(Reply::Done)
    }

    fn balloon(&self) -> Result<MutexGuard<'_, Balloon>, Refusal> {
        let balloon = self.vm()?.balloon().ok_or(Refusal::NoDevice("balloon"))?;
        Ok(lock(balloon))
    }

    fn balloon_config(&self) -> Result<BalloonConfig, Refusal> {
        let Some(configured) = &self.config.balloon else {
            return Err(Refusal::NoDevice("balloon"));
        };
        if self.vm.is_none() {
            return Ok(configured.clone());
        }
        let now = self.balloon()?.current_config();
        Ok(BalloonConfig {
            amount_mib: mib(now.target),
            deflate_on_oom: now.deflate_on_oom,
            stats_polling_interval_s: u16::try_from(now.stats_interval.as_secs())
                .unwrap_or(u16::MAX),
            free_page_hinting: now.free_page_hinting,
            free_page_reporting: now.free_page_reporting,
            blocks: now.blocks,
        })
    }

    fn set_balloon_target(&mut self, amount_mib: u32) -> Result<Reply, Refusal> {
        done(self.balloon()?.set_target(Pages(u64::from(amount_mib) * PAGES_PER_MIB)))
    }

    fn balloon_stats(&self) -> Result<Reply, Refusal> {
        let balloon = self.balloon()?;
        if balloon.stats_interval().is_zero() {
            let why = "Statistics are off: set stats_polling_interval_s before the start.";
            return Err(Refusal::Failed(why.into()));
        }
        let (target, actual) = (balloon.target_pages(), balloon.actual());
        Ok(Reply::BalloonStats(Box::new(BalloonStats {
            target_pages: u32::try_from(target.0).unwrap_or(u32::MAX),
            actual_pages: u32::try_from(actual.0).unwrap_or(u32::MAX),
            target_mib: mib(target),
            actual_mib: mib(actual),
            guest: balloon.statistics().into(),
        })))
    }

    fn hinting(&self) -> Result<Reply, Refusal> {
        let status = self.balloon()?.hinting_status().map_err(failed)?;
        let (host_cmd, guest_cmd) = (status.host_cmd, status.guest_cmd);
        Ok(Reply::Hinting(HintingStatus { host_cmd, guest_cmd }))
    }

    fn memory(&self) -> Result<Reply, Refusal> {
        let vm = self.vm()?;
        let ballooned = vm.balloon().map_or(Pages(0), |balloon| lock(balloon).ballooned());
        let residency = vm.ram().residency().map_err(failed)?;
        Ok(Reply::Memory(MemoryStatus {
            backing: self.config.backing(),
            cma_bytes: self.config.memory.cma_mib << 20,
            total_bytes: vm.ram().pages().bytes().0,
            resident_bytes: residency.resident.0,
            huge_bytes: residency.huge.map(|huge| huge.0),
            ballooned_bytes: ballooned.bytes().0,
        }))
    }

    /// All counters since the start, by group.
    fn totals(&self) -> Value {
        let mut groups = Map::new();
        groups.insert("api".into(), json!(*self.api_stats));
        if let Some(vm) = &self.vm {
            let count = |kind| vm.exit_counts().iter().map(|cpu| cpu.get(kind)).sum::<u64>();
            let vcpu: Map<String, Value> = ExitKind::ALL
                .iter()
                .map(|&kind| (kind.name().to_owned(), count(kind).into()))
                .collect();
            groups.insert("vcpu".into(), vcpu.into());
            if let Some(balloon) = vm.balloon() {
                groups.insert("balloon".into(), json!(lock(balloon).counters()));
            }
            if let Ok(gpu) = self.gpu_status() {
                groups.insert("gpu".into(), json!(gpu.counters));
            }
        }
        groups.into()
    }

    fn flush_metrics(&mut self) -> Result<(), Refusal> {
        let totals = self.totals();
        match &mut self.metrics {
            Some(metrics) => metrics.write(totals).map_err(failed),
            None => Err(Refusal::Failed("There is no metrics file: PUT /metrics first.".into())),
        }
    }

    fn on_metrics_timer(&mut self) {
        // An error means that it was read before: nothing is due.
        let due = rustix::io::read(&self.metrics_timer, &mut [0; 8]).is_ok();
        if due && let Err(error) = self.flush_metrics() {
            warn!(%error, "metrics are lost");
        }
    }
}

impl MutEventSubscriber for Controller {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in [self.requests.as_raw_fd(), self.metrics_timer.as_raw_fd()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                error!(%error, "cannot watch for requests");
                self.events.exit().raise(ExitReason::HostError(error.to_string()));
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let fd: RawFd = events.fd();
        if fd == self.metrics_timer.as_fd().as_raw_fd() {
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
    /// The last line of the metrics.
    fn drop(&mut self) {
        if self.metrics.is_some()
            && let Err(error) = self.flush_metrics()
        {
            warn!(%error, "the last metrics are lost");
        }
    }
}

/// A device stays usable after a panic elsewhere: its own state is checked at every step.
fn lock<T>(device: &Arc<Mutex<T>>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::Failed(error.to_string())
}

fn done<E: std::fmt::Display>(result: Result<(), E>) -> Result<Reply, Refusal> {
    result.map(|()| Reply::Done).map_err(failed)
}

/// Whole MiB in `pages`, as Firecracker's fields have them.
fn mib(pages: Pages) -> u32 {
    u32::try_from(pages.0 / PAGES_PER_MIB).unwrap_or(u32::MAX)
}

impl From<&Statistics> for GuestStats {
    fn from(told: &Statistics) -> Self {
        Self {
            swap_in: told.swap_in,
            swap_out: told.swap_out,
            major_faults: told.major_faults,
            minor_faults: told.minor_faults,
            free_memory: told.free_memory,
            total_memory: told.total_memory,
            available_memory: told.available_memory,
            disk_caches: told.disk_caches,
            hugetlb_allocations: told.hugetlb_allocations,
            hugetlb_failures: told.hugetlb_failures,
            oom_kill: told.oom_kill,
            alloc_stall: told.alloc_stall,
            async_scan: told.async_scan,
            direct_scan: told.direct_scan,
            async_reclaim: told.async_reclaim,
            direct_reclaim: told.direct_reclaim,
            cma_total: told.cma_total,
            cma_free: told.cma_free,
            cma_allocated: told.cma_allocated,
        }
    }
}
