// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the display.

use devices::display::{ScanoutId, Size};
use devices::gpu::{GpuStats, KindStats};

use super::{Controller, done, lock};
use crate::api::gpu::{
    GpuAction, GpuCounters, GpuReply, GpuStatus, Mode, Resources, ScanoutStatus, ScanoutUpdate,
};
use crate::api::{Refusal, Reply};
use crate::machine::Screens;

impl Controller {
    pub(super) fn gpu_action(&mut self, action: GpuAction) -> Result<Reply, Refusal> {
        match action {
            GpuAction::Get => Ok(GpuReply::Status(Box::new(self.gpu_status()?)).into()),
            GpuAction::Set(gpu) => self.configure(|config| config.gpu = Some(gpu)),
            GpuAction::GetScanout(n) => self.picture(n),
            GpuAction::UpdateScanout(n, update) => self.set_mode(n, update),
        }
    }

    fn screens(&self) -> Result<&Screens, Refusal> {
        self.vm()?.screens().ok_or(Refusal::NoDevice("gpu"))
    }

    pub(super) fn gpu_status(&self) -> Result<GpuStatus, Refusal> {
        let Screens { gpu, frames, .. } = self.screens()?;
        let gpu = lock(gpu);
        let scanouts = (0..)
            .map_while(ScanoutId::new)
            .take(gpu.scanouts())
            .map(|id| ScanoutStatus {
                mode: gpu.mode(id).map(Mode::from),
                shows: frames.size(id).map(Mode::from),
            })
            .collect();
        Ok(GpuStatus { scanouts, ..gpu.stats().into() })
    }

    fn set_mode(&self, n: u32, update: ScanoutUpdate) -> Result<Reply, Refusal> {
        let mode = update.mode.map(|mode| Size::new(mode.width_px, mode.height_px));
        done(lock(&self.screens()?.gpu).set_mode(n, mode))
    }

    fn picture(&self, n: u32) -> Result<Reply, Refusal> {
        let Screens { gpu, frames, .. } = self.screens()?;
        let mut gpu = lock(gpu);
        let id = ScanoutId::new(n)
            .filter(|id| id.index() < gpu.scanouts())
            .ok_or_else(|| Refusal::NoScanout(n.to_string()))?;
        if !frames.look(id) {
            gpu.refresh(id);
        }
        match frames.snapshot(id) {
            Some(snapshot) => Ok(GpuReply::Picture(Box::new(snapshot)).into()),
            None => Err(Refusal::Failed(format!("Scanout {n} shows nothing."))),
        }
    }
}

impl From<Size> for Mode {
    fn from(size: Size) -> Self {
        Self { width_px: size.width, height_px: size.height }
    }
}

impl From<KindStats> for Resources {
    fn from(stats: KindStats) -> Self {
        Self { count: stats.count, bytes: stats.bytes }
    }
}

impl From<GpuStats> for GpuStatus {
    fn from(stats: GpuStats) -> Self {
        let counters = stats.counters;
        Self {
            scanouts: Vec::new(),
            images: stats.images.into(),
            guest_blobs: stats.guest_blobs.into(),
            host_blobs: stats.host_blobs.into(),
            backing_bytes: stats.backing_bytes,
            backing_runs: stats.backing_runs,
            cma_pages: stats.cma_pages,
            host_bytes: stats.host_bytes,
            mapped_bytes: stats.mapped_bytes,
            counters: GpuCounters {
                commands: counters.commands,
                errors: counters.errors,
                transfers: counters.transfers,
                transfer_bytes: counters.transfer_bytes,
                flushes: counters.flushes,
                migrations: counters.migrations,
                migrations_failed: counters.migrations_failed,
                migrated_pages: counters.migrated_pages,
            },
        }
    }
}
