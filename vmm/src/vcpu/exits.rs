// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kinds of exits, and how often each happened.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::VcpuExit;

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

/// Exits of one vCPU by kind. One thread writes, any may read.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ExitCounts([AtomicU64; ExitKind::ALL.len()]);

impl ExitCounts {
    /// How many of `kind` there were.
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    /// How many there were in all.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Counts one more; only the vCPU's own thread does, so no locked instruction is needed.
    pub(super) fn add(&self, kind: ExitKind) {
        let count = &self.0[kind as usize];
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
}
