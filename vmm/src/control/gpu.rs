// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the display.

use std::sync::Arc;

use devices::display::{ScanoutId, Size, encode_png};
use devices::gpu::{GpuStats, KindStats, capture};

use super::{Controller, done};
use crate::api::gpu::{
    Camera, GpuAction, GpuCounters, GpuReply, GpuStatus, Mode, Resources, ScanoutStatus,
    ScanoutUpdate,
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
        let gpu = gpu.lock();
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
        let screens = self.screens()?;
        let size = |mode: Mode| devices::gpu::mode(mode.width_px, mode.height_px);
        done(
            update.mode.map(size).transpose().and_then(|mode| screens.gpu.lock().set_mode(n, mode)),
        )
    }

    fn picture(&self, n: u32) -> Result<Reply, Refusal> {
        let gpu = &self.screens()?.gpu;
        let id = ScanoutId::new(n)
            .filter(|id| id.index() < gpu.lock().scanouts())
            .ok_or_else(|| Refusal::NoScanout(n.to_string()))?;
        // The picture is captured on the requesting thread, one strip at a time.
        let gpu = Arc::clone(gpu);
        let take = move || {
            let picture = capture(&gpu, id).map_err(|error| format!("Scanout {id}: {error}."))?;
            let budget = Arc::clone(gpu.lock().budget());
            encode_png(&picture.composed(), &budget).map_err(|error| error.to_string())
        };
        Ok(GpuReply::Picture(Camera::new(take)).into())
    }
}

impl From<Size> for Mode {
    fn from(size: Size) -> Self {
        Self { width_px: size.width.into(), height_px: size.height.into() }
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
