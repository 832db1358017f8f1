// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything that can be asked of the monitor while it runs, in which phase of the machine's life
//! it may be asked, and what comes back. The only vocabulary between the API thread and the
//! machine.
//!
//! ```text
//!                  Start            Pause
//!   NotStarted ───────────▶ Running ─────▶ Paused
//!                              ▲             │
//!                              └─────────────┘ Resume
//! ```

use bitflags::bitflags;
use devices::display::Snapshot;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::compaction::{CmaStatus, Compact, CompactReport, CompactStatus};
use crate::block_view::BlockRuns;
use crate::config::{
    BackingKind, BalloonConfig, BalloonStatsUpdate, BalloonUpdate, BootSource, Faults, GpuConfig,
    LoggerConfig, MachineConfig, MachineUpdate, MemoryConfig, MetricsConfig, VmConfig,
};

/// Where a machine stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Phase {
    /// Being described.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
}

bitflags! {
    /// A set of [`Phase`]s.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Phases: u8 {
        /// [`Phase::NotStarted`].
        const NOT_STARTED = 1;
        /// [`Phase::Running`].
        const RUNNING = 2;
        /// [`Phase::Paused`].
        const PAUSED = 4;
        /// There is a machine.
        const STARTED = Self::RUNNING.bits() | Self::PAUSED.bits();
        /// At any time.
        const ANY = Self::NOT_STARTED.bits() | Self::STARTED.bits();
    }
}

impl From<Phase> for Phases {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::NotStarted => Self::NOT_STARTED,
            Phase::Running => Self::RUNNING,
            Phase::Paused => Self::PAUSED,
        }
    }
}

/// One thing to do or to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Who is this, and in which phase: [`Reply::Instance`].
    GetInstance,
    /// The whole configuration: [`Reply::Config`].
    GetConfig,
    /// vCPUs and memory size: [`Reply::Machine`].
    GetMachine,
    /// Sets vCPUs and memory size.
    SetMachine(MachineConfig),
    /// Changes some of it.
    UpdateMachine(MachineUpdate),
    /// Sets what memory is made of.
    SetMemory(MemoryConfig),
    /// Sets what to boot.
    SetBootSource(BootSource),
    /// Sets the display.
    SetGpu(GpuConfig),
    /// The balloon as configured, with its present target: [`Reply::Balloon`].
    GetBalloon,
    /// Sets the balloon device.
    SetBalloon(BalloonConfig),
    /// Gives the balloon a new target.
    UpdateBalloon(BalloonUpdate),
    /// What guest and device know of the balloon: [`Reply::BalloonStats`].
    GetBalloonStats,
    /// Changes how often the guest is asked.
    UpdateBalloonStats(BalloonStatsUpdate),
    /// Asks the guest for its free pages.
    StartHinting(HintingStart),
    /// How far that is: [`Reply::Hinting`].
    GetHinting,
    /// Ends it.
    StopHinting,
    /// Opens the log.
    SetLogger(LoggerConfig),
    /// Opens the metrics file.
    SetMetrics(MetricsConfig),
    /// All counters since the start: [`Reply::Metrics`].
    GetMetrics,
    /// Writes a line to the metrics file.
    FlushMetrics,
    /// Builds the machine and lets it run.
    Start,
    /// Lets all vCPUs stand still.
    Pause,
    /// Lets them run again.
    Resume,
    /// Presses Ctrl+Alt+Del.
    SendCtrlAltDel,
    /// Ends the monitor, and the machine with it, at once.
    Stop,
    /// What guest memory is made of now: [`Reply::Memory`].
    GetMemory,
    /// Asks the guest to empty blocks and give them up: [`Reply::Evacuation`], when it answers.
    Evacuate(Evacuate),
    /// Runs a compaction pass: [`Reply::Compaction`] when it is over, or [`Reply::Done`] at once.
    Compact(Compact),
    /// How far that is: [`Reply::CompactStatus`].
    GetCompaction,
    /// Ends it.
    CancelCompaction,
    /// What every block is made of: [`Reply::Blocks`].
    GetBlocks,
    /// The CMA region: [`Reply::Cma`].
    GetCma,
    /// Scanouts, resources and counters of the display: [`Reply::Gpu`].
    GetGpu,
    /// What a scanout shows: [`Reply::Picture`].
    GetScanout(u32),
    /// Changes a scanout's mode.
    UpdateScanout(u32, ScanoutUpdate),
}

impl Action {
    /// In which phases this may be asked.
    pub const fn legal_in(&self) -> Phases {
        match self {
            Self::SetMachine(_)
            | Self::UpdateMachine(_)
            | Self::SetMemory(_)
            | Self::SetBootSource(_)
            | Self::SetGpu(_)
            | Self::SetBalloon(_)
            | Self::SetLogger(_)
            | Self::SetMetrics(_)
            | Self::Start => Phases::NOT_STARTED,

            Self::UpdateBalloon(_)
            | Self::GetBalloonStats
            | Self::UpdateBalloonStats(_)
            | Self::StartHinting(_)
            | Self::GetHinting
            | Self::StopHinting
            | Self::FlushMetrics
            | Self::Pause
            | Self::Resume
            | Self::SendCtrlAltDel
            | Self::GetMemory
            | Self::GetCompaction
            | Self::CancelCompaction
            | Self::GetBlocks
            | Self::GetCma
            | Self::GetGpu
            | Self::GetScanout(_)
            | Self::UpdateScanout(..) => Phases::STARTED,

            // A guest that stands still cannot answer.
            Self::Evacuate(_) | Self::Compact(_) => Phases::RUNNING,

            Self::GetInstance
            | Self::GetConfig
            | Self::GetMachine
            | Self::GetBalloon
            | Self::GetMetrics
            | Self::Stop => Phases::ANY,
        }
    }

    /// Refuses what `phase` does not allow.
    pub fn check(&self, phase: Phase) -> Result<(), Refusal> {
        let legal = self.legal_in();
        if legal.contains(phase.into()) {
            Ok(())
        } else if phase == Phase::NotStarted {
            Err(Refusal::BeforeStart)
        } else if legal.intersects(Phases::STARTED) {
            Err(Refusal::WhilePaused)
        } else {
            Err(Refusal::AfterStart)
        }
    }
}

/// What comes back when nothing went wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Done; there is nothing to tell.
    Done,
    /// To [`Action::GetInstance`].
    Instance(Instance),
    /// To [`Action::GetConfig`].
    Config(Box<VmConfig>),
    /// To [`Action::GetMachine`].
    Machine(MachineConfig),
    /// To [`Action::GetBalloon`].
    Balloon(BalloonConfig),
    /// To [`Action::GetBalloonStats`].
    BalloonStats(Box<BalloonStats>),
    /// To [`Action::GetHinting`].
    Hinting(HintingStatus),
    /// To [`Action::GetMetrics`].
    Metrics(serde_json::Value),
    /// To [`Action::GetMemory`].
    Memory(MemoryStatus),
    /// To [`Action::Evacuate`].
    Evacuation(Evacuation),
    /// To [`Action::Compact`].
    Compaction(Box<CompactReport>),
    /// To [`Action::GetCompaction`].
    CompactStatus(Box<CompactStatus>),
    /// To [`Action::GetBlocks`].
    Blocks(BlockRuns),
    /// To [`Action::GetCma`].
    Cma(CmaStatus),
    /// To [`Action::GetGpu`].
    Gpu(Box<GpuStatus>),
    /// To [`Action::GetScanout`].
    Picture(Box<Snapshot>),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It needs a machine. Clients of Firecracker know this sentence and the next.
    #[error("The requested operation is not supported before starting the microVM.")]
    BeforeStart,
    /// It is settled when the machine starts.
    #[error("The requested operation is not supported after starting the microVM.")]
    AfterStart,
    /// It needs a guest that runs.
    #[error("The requested operation is not supported while the microVM is paused.")]
    WhilePaused,
    /// The configuration, with what was asked for, is wrong.
    #[error("{0}")]
    Invalid(Faults),
    /// The machine has no such device.
    #[error("The microVM has no {0} device.")]
    NoDevice(&'static str),
    /// The display has no such scanout.
    #[error("There is no scanout {0}.")]
    NoScanout(String),
    /// It was tried and did not work, or makes no sense now.
    #[error("{0}")]
    Failed(String),
    /// Too much is waiting already, or the machine is about to end.
    #[error("The microVM does not answer.")]
    NoAnswer,
}

/// Who this is (`GET /`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// `Ballast`.
    pub app_name: String,
    /// What `--id` gave.
    pub id: String,
    /// Phase of the machine's life.
    pub state: Phase,
    /// Version of Ballast.
    pub vmm_version: String,
}

/// How to hint (`PATCH /balloon/hinting/start`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HintingStart {
    /// Whether the guest gets its hinted pages back as soon as it has named all of them.
    pub acknowledge_on_stop: bool,
}

impl Default for HintingStart {
    fn default() -> Self {
        Self { acknowledge_on_stop: true }
    }
}

/// How far hinting is (`GET /balloon/hinting/status`): command identifiers of virtio 1.3, 5.5.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HintingStatus {
    /// The last command that the host gave.
    pub host_cmd: u32,
    /// The last command that the guest took up, if any.
    pub guest_cmd: Option<u32>,
}

/// What device and guest know of the balloon (`GET /balloon/statistics`).
///
/// What the guest never told is left out. Names are Firecracker's, and the guest's values are in
/// the guest's units (bytes for memory, counts for events: virtio 1.3, 5.5.6.3).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BalloonStats {
    /// Pages of 4 KiB that the balloon should hold.
    pub target_pages: u32,
    /// Pages of 4 KiB that the guest says it holds.
    pub actual_pages: u32,
    /// The same target, in MiB.
    pub target_mib: u32,
    /// The same size, in MiB.
    pub actual_mib: u32,
    /// What the guest told last.
    #[serde(flatten)]
    pub guest: GuestStats,
}

/// Statistics as the guest gives them; each is absent until the guest has sent it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GuestStats {
    /// Bytes swapped in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Major page faults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Minor page faults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Free memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// All memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Memory that programs could get without swapping, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Page cache, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Huge pages of hugetlbfs allocated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages of hugetlbfs that could not be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for lack of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait for reclaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    /// Memory scanned in the background, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    /// Memory scanned by those who wait, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    /// Memory reclaimed in the background, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    /// Memory reclaimed by those who wait, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
    /// All CMA regions, in bytes. Ballast's own, as are the next two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cma_total: Option<u64>,
    /// What nobody uses of them, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cma_free: Option<u64>,
    /// What is in contiguous use by devices, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cma_allocated: Option<u64>,
}

/// What guest memory is made of now (`GET /memory`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryStatus {
    /// Kind of host memory.
    pub backing: BackingKind,
    /// Size of the contiguous region (CMA).
    pub cma_bytes: u64,
    /// Size of guest memory.
    pub total_bytes: u64,
    /// Of that, what is present on the host.
    pub resident_bytes: u64,
    /// Of that, what is mapped by huge pages; `null` where the kernel cannot tell.
    pub huge_bytes: Option<u64>,
    /// What the balloon holds, by the device's own record.
    pub ballooned_bytes: u64,
}

/// Blocks to evacuate (`PUT /memory/evacuate`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Evacuate {
    /// Guest-physical address of the first block: a multiple of 2 MiB.
    pub start: u64,
    /// Number of blocks of 2 MiB.
    pub blocks: u32,
}

/// How an evacuation went, as the guest tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Evacuation {
    /// Blocks that were emptied and given up.
    pub vacated: u32,
    /// Blocks that something could not be moved out of.
    pub busy: u32,
    /// Pages moved that belong to programs or the page cache.
    pub migrated_lru: u64,
    /// Pages of the balloon moved.
    pub migrated_balloon: u64,
    /// Pages of compressed memory moved.
    pub migrated_zsmalloc: u64,
    /// Pages of GPU buffers moved.
    pub migrated_gpu: u64,
    /// What became of each block, in order.
    pub per_block: Vec<BlockOutcome>,
}

/// What became of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BlockOutcome {
    /// Emptied and given up.
    Vacated,
    /// Something in it could not be moved.
    Busy,
    /// Not memory of the guest's.
    NotMemory,
    /// The guest did not answer in time, or not truthfully.
    Unanswered,
}

/// The display (`GET /gpu`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuStatus {
    /// Scanouts by number.
    pub scanouts: Vec<ScanoutStatus>,
    /// 2D resources.
    pub images: Resources,
    /// Blobs in guest memory.
    pub guest_blobs: Resources,
    /// Blobs in host memory.
    pub host_blobs: Resources,
    /// Guest memory that resources are backed by, in bytes.
    pub backing_bytes: u64,
    /// Pieces that it is in.
    pub backing_runs: u64,
    /// Pages of it in the CMA region.
    pub cma_pages: u64,
    /// Host memory taken, in bytes.
    pub host_bytes: u64,
    /// Host memory mapped into the guest, in bytes.
    pub mapped_bytes: u64,
    /// What has happened since the start.
    pub counters: GpuCounters,
}

/// One scanout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScanoutStatus {
    /// The mode that the guest is offered; `null` when unplugged.
    pub mode: Option<Mode>,
    /// Size of the picture that it shows; `null` while it shows none.
    pub shows: Option<Mode>,
}

/// Resources of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// How many.
    pub count: u64,
    /// Their sizes added up, in bytes.
    pub bytes: u64,
}

/// What the display has done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuCounters {
    /// Commands answered.
    pub commands: u64,
    /// Of these, with an error.
    pub errors: u64,
    /// Transfers to the host.
    pub transfers: u64,
    /// Bytes that they copied.
    pub transfer_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Migrations of backing pages.
    pub migrations: u64,
    /// Of these, refused.
    pub migrations_failed: u64,
    /// Pages that moved.
    pub migrated_pages: u64,
}

/// A size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mode {
    /// Width, in pixels.
    pub width_px: u32,
    /// Height, in pixels.
    pub height_px: u32,
}

/// What to change of a scanout (`PATCH /gpu/scanouts/{n}`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScanoutUpdate {
    /// The mode to offer the guest; `null` unplugs the scanout. It must be there.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required)]
    pub mode: Option<Mode>,
}
