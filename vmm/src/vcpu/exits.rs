// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kinds of exits, how often each happened, and how long those took that a device serves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvm_ioctls::VcpuExit;
use mm::units::SaturatingInto;

/// Why a vCPU left guest code for the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ExitKind {
    /// A port was read.
    IoIn,
    /// A port was written.
    IoOut,
    /// An address that is not RAM was read.
    MmioRead,
    /// An address that is not RAM was written, and no ioeventfd took it.
    MmioWrite,
    /// A signal: pause, resume and stop.
    Interrupted,
    /// Triple fault.
    Shutdown,
    /// KVM gave up.
    Failed,
    /// Anything else.
    Other,
}

impl ExitKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::IoIn,
        Self::IoOut,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Interrupted,
        Self::Shutdown,
        Self::Failed,
        Self::Other,
    ];

    /// Those that a device serves; the first of all, so that their number is their place here too.
    pub const SERVED: [Self; 4] = [Self::IoIn, Self::IoOut, Self::MmioRead, Self::MmioWrite];

    /// The name that metrics have for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::IoIn => "exit_io_in",
            Self::IoOut => "exit_io_out",
            Self::MmioRead => "exit_mmio_read",
            Self::MmioWrite => "exit_mmio_write",
            Self::Interrupted => "exit_interrupted",
            Self::Shutdown => "exit_shutdown",
            Self::Failed => "exit_failed",
            Self::Other => "exit_other",
        }
    }

    /// The kind of `exit`.
    pub(super) fn of(exit: &VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::IoIn(..) => Self::IoIn,
            VcpuExit::IoOut(..) => Self::IoOut,
            VcpuExit::MmioRead(..) => Self::MmioRead,
            VcpuExit::MmioWrite(..) => Self::MmioWrite,
            VcpuExit::Intr => Self::Interrupted,
            VcpuExit::Shutdown => Self::Shutdown,
            VcpuExit::InternalError | VcpuExit::FailEntry(..) | VcpuExit::MemoryFault { .. } => {
                Self::Failed
            }
            _ => Self::Other,
        }
    }
}

/// How long exits of one kind took to serve, in nanoseconds; all 0 before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServedTime {
    /// The shortest.
    pub min_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// All together.
    pub sum_ns: u64,
}

impl ServedTime {
    /// This and `other` together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        let min_ns = match (self.min_ns, other.min_ns) {
            (0, min) | (min, 0) => min,
            (a, b) => a.min(b),
        };
        Self {
            min_ns,
            max_ns: self.max_ns.max(other.max_ns),
            sum_ns: self.sum_ns.wrapping_add(other.sum_ns),
        }
    }
}

/// Accumulator of [`ServedTime`].
#[derive(Debug, Default)]
struct ServedTimes {
    min_ns: AtomicU64,
    max_ns: AtomicU64,
    sum_ns: AtomicU64,
}

impl ServedTimes {
    fn get(&self) -> ServedTime {
        ServedTime {
            min_ns: self.min_ns.load(Ordering::Relaxed),
            max_ns: self.max_ns.load(Ordering::Relaxed),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }

    fn set(&self, time: ServedTime) {
        self.min_ns.store(time.min_ns, Ordering::Relaxed);
        self.max_ns.store(time.max_ns, Ordering::Relaxed);
        self.sum_ns.store(time.sum_ns, Ordering::Relaxed);
    }
}

/// Exits of one vCPU by kind. One thread writes, any may read.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ExitCounts {
    counts: [AtomicU64; ExitKind::ALL.len()],
    times: [ServedTimes; ExitKind::SERVED.len()],
}

impl ExitCounts {
    /// How many of `kind` there were.
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }

    /// How many there were in all.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How long exits of `kind`, one of [`ExitKind::SERVED`], took.
    pub fn time(&self, kind: ExitKind) -> ServedTime {
        self.times.get(kind as usize).map(ServedTimes::get).unwrap_or_default()
    }

    /// Counts one more of [`ExitKind::SERVED`], which a device has served in `time`; on the vCPU's
    /// own thread.
    pub(super) fn served(&self, kind: ExitKind, time: Duration) {
        self.add(kind);
        if let Some(times) = self.times.get(kind as usize) {
            // A clock that stood still still means that there was one.
            let ns = time.as_nanos().saturating_u64().max(1);
            times.set(times.get().with(ServedTime { min_ns: ns, max_ns: ns, sum_ns: ns }));
        }
    }

    /// Counts one more; only the vCPU's own thread does, so no locked instruction is needed.
    pub(super) fn add(&self, kind: ExitKind) {
        let count = &self.counts[kind as usize];
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_place_and_name() {
        let counts = ExitCounts::default();
        for (at, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            for _ in 0..=at {
                counts.add(kind);
            }
        }
        for (at, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(counts.get(kind), at as u64 + 1);
            assert!(ExitKind::ALL.iter().filter(|k| k.name() == kind.name()).count() == 1);
        }
        assert_eq!(counts.total(), 36);
    }

    #[test]
    fn times_are_added_up_by_kind() {
        let counts = ExitCounts::default();
        assert_eq!(counts.time(ExitKind::MmioWrite), ServedTime::default());
        for (at, kind) in ExitKind::SERVED.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            for ns in [500, 300, 900] {
                counts.served(kind, Duration::from_nanos(ns));
            }
            let time = counts.time(kind);
            assert_eq!(time, ServedTime { min_ns: 300, max_ns: 900, sum_ns: 1700 });
            assert_eq!(ServedTime::default().with(time), time, "a vCPU without such exits");
            assert_eq!(counts.get(kind), 3);
        }
        assert_eq!(counts.time(ExitKind::Failed), ServedTime::default());
    }
}
