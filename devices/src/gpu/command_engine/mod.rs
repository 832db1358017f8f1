// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device without its queues: its parts, and one dispatch over decoded commands.
//!
//! Each part owns its state; a command receives the parts that it needs. Short commands complete
//! immediately, long ones become a [`Job`] that runs in several rounds.
//!
//! - `validate.rs` (feature `test-utils`): a recount of everything

#[cfg(any(test, feature = "test-utils"))]
mod validate;

use mm::budget::Budget;
use mm::units::GuestRange;
use std::sync::Arc;

use crate::display::{Cursor, Frame, FrameError, ScanoutId, Size};
use crate::gpu::host_memory::HostPool;
use crate::gpu::large::{LargeBackings, WantsBlocks};
use crate::gpu::migrate::{Batch, Migration};
use crate::gpu::ops::{
    Build, CursorJob, Disposal, Flushing, Job, TransferJob, blob, cursor, flush, image2d,
};
use crate::gpu::protocol::{Command, CreateBlob, Entries, ResourceId, blob_mem};
use crate::gpu::resource::{BackingPosition, ResourceTable};
use crate::gpu::resource_backing::CmaRegions;
use crate::gpu::response::{Fault, Response};
use crate::gpu::scanout::{ScanoutView, Surface};
use crate::gpu::scanouts::Scanouts;
use crate::gpu::stats::{GpuEvents, GpuStats};
use crate::gpu::uuid::Uuids;
use crate::gpu::window::Window;
use crate::gpu::{GpuParts, GpuSettings};
use crate::virtio::{Deadline, GuestMemoryMmap, Progress, Segments};

/// The driver's side of one command.
#[derive(Clone, Copy)]
pub(in crate::gpu) struct Guest<'a> {
    /// Guest RAM.
    pub mem: &'a GuestMemoryMmap,
    /// Features that both sides agreed on.
    pub features: u64,
    /// The command's buffer.
    pub buffer: &'a Segments,
}

/// Progress of a command.
pub(in crate::gpu) enum Step {
    /// It is done.
    Done(Response),
    /// It goes on.
    Job(Job),
}

/// State of the device; commands of the control queue run on it one at a time.
pub(in crate::gpu) struct CommandEngine {
    max_entries: u32,
    cma: CmaRegions,
    resources: ResourceTable,
    scanouts: Scanouts,
    host: HostPool,
    window: Window,
    uuids: Uuids,
    large: LargeBackings,
    disposal: Disposal,
    counters: GpuEvents,
}

impl CommandEngine {
    /// A device without resources, whose scanouts are plugged in.
    pub(in crate::gpu) fn new(settings: GpuSettings, parts: GpuParts) -> Self {
        let limits = settings.limits;
        let budget = parts.budget;
        Self {
            max_entries: limits.entries_per_resource,
            cma: CmaRegions::new(settings.cma),
            resources: ResourceTable::new(limits.resources, Arc::clone(&budget)),
            scanouts: Scanouts::new(settings.scanouts, settings.mode, parts.display),
            host: HostPool::new(parts.host_memory, budget),
            window: Window::new(parts.window, parts.mappings),
            uuids: Uuids::new(),
            large: LargeBackings::new(),
            disposal: Disposal::default(),
            counters: GpuEvents::default(),
        }
    }

    /// Most entries that one command may have.
    pub(in crate::gpu) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// The scanouts, to look at.
    pub(in crate::gpu) fn scanouts(&self) -> &Scanouts {
        &self.scanouts
    }

    /// Calls `tell` for large backings.
    pub(in crate::gpu) fn on_large_backing(&mut self, tell: Option<WantsBlocks>) {
        self.large.set(tell);
    }

    /// Starts one command; a failure leaves the state unchanged.
    pub(in crate::gpu) fn begin(
        &mut self,
        guest: Guest<'_>,
        command: Command,
        deadline: &mut Deadline,
    ) -> Result<Step, Fault> {
        if guest.features & command.needed_features() != command.needed_features() {
            return Err(Fault::NotOffered);
        }
        let Self { resources, scanouts, host, window, .. } = self;
        let job = match command {
            Command::GetDisplayInfo => {
                let info = Box::new(scanouts.display_info());
                return Ok(Step::Done(Response::DisplayInfo(info)));
            }
            Command::GetEdid { scanout } => {
                return Ok(Step::Done(Response::Edid(scanouts.edid(scanout)?)));
            }
            Command::AssignUuid(id) => {
                let serial = resources.get(id)?.serial;
                return Ok(Step::Done(Response::ResourceUuid(self.uuids.of(serial))));
            }
            Command::MapBlob(c) => {
                deadline.charge(Deadline::SYSCALL);
                blob::map_blob(resources, window, &c)?;
                return Ok(Step::Done(Response::MapInfo));
            }
            Command::UnmapBlob(id) => {
                deadline.charge(Deadline::SYSCALL);
                blob::unmap_blob(resources, window, id)?;
                None
            }
            Command::Create2d(c) => {
                image2d::create_2d(resources, host, &c)?;
                None
            }
            Command::DetachBacking(id) => {
                self.disposal.add_backed(image2d::detach_backing(resources, id)?);
                Some(Job::Dispose(Ok(())))
            }
            Command::SetScanout(c) => {
                flush::set_scanout(resources, scanouts, &c)?;
                None
            }
            Command::SetScanoutBlob(c) => {
                flush::set_scanout_blob(resources, scanouts, &c)?;
                None
            }
            Command::UpdateCursor(c) => Some(Job::Cursor(CursorJob::new(resources, scanouts, &c)?)),
            Command::MoveCursor(c) => {
                let scanout = scanouts.find(c.scanout_id.get())?;
                scanouts.move_cursor(scanout, cursor::position(&c));
                None
            }
            Command::TransferToHost2d(c) => {
                deadline.charge(Deadline::SYSCALL);
                TransferJob::new(resources, host, &c)?.map(Job::Transfer)
            }
            Command::Flush(c) => {
                let job = Flushing::new(resources, scanouts, &c)?;
                self.counters.flushes += 1;
                Some(Job::Flush(job))
            }
            Command::AttachBacking(id, entries) => {
                Some(Job::Build(Build::attach(resources, host.budget(), id, entries)?))
            }
            Command::CreateBlob(c, entries) => self.create_blob(&c, entries, deadline)?,
            Command::MigrateBacking(id, entries) => Some(Job::Migrate(id, Migration::new(entries))),
            Command::MigratePages(pages) => Some(Job::MigrateBatch(Batch::new(pages)?)),
            Command::Unref(id) => Some(self.unref(id, deadline)?),
            Command::Capset => return Err(Fault::Parameter),
            Command::Context => return Err(Fault::NoContext),
            Command::Unsupported(_) => return Err(Fault::NotOffered),
        };
        Ok(job.map_or(Step::Done(Response::NoData), Step::Job))
    }

    /// Continues `job` until it is done or `deadline` passes; returns the response or the rest of
    /// the job.
    pub(in crate::gpu) fn go_on(
        &mut self,
        guest: Guest<'_>,
        job: Job,
        deadline: &mut Deadline,
    ) -> Result<Step, Fault> {
        let Self { resources, scanouts, window, disposal, cma, counters, .. } = self;
        let more = |progress, job| if progress == Progress::More { Some(job) } else { None };
        let left = match job {
            Job::Transfer(mut job) => {
                let progress = job.run(resources, guest.mem, deadline)?;
                if progress == Progress::Done {
                    counters.transfers += 1;
                    counters.transfer_bytes += job.bytes();
                }
                more(progress, Job::Transfer(job))
            }
            Job::Flush(mut job) => {
                let progress = job.run(resources, scanouts, guest.mem, deadline);
                more(progress, Job::Flush(job))
            }
            Job::Cursor(mut job) => {
                let progress = job.run(resources, scanouts, guest.mem, deadline)?;
                more(progress, Job::Cursor(job))
            }
            Job::Build(mut job) => {
                let progress = job.run(guest.mem, guest.buffer, cma, deadline);
                if progress == Ok(Progress::More) {
                    return Ok(Step::Job(Job::Build(job)));
                }
                match progress.and_then(|_| job.check(resources)) {
                    Ok(()) => {
                        if job.finish(resources)? {
                            self.large.note();
                        }
                        None
                    }
                    Err(fault) => {
                        disposal.add_backed(job.abandon());
                        return self.go_on(guest, Job::Dispose(Err(fault)), deadline);
                    }
                }
            }
            Job::Migrate(id, mut job) => {
                let progress = resources.migrate(id, &mut job, guest.mem, cma, deadline);
                counters.note_migration(progress.as_ref().ok().copied(), job.pages());
                more(progress?, Job::Migrate(id, job))
            }
            Job::MigrateBatch(mut batch) => {
                let progress = batch.run(deadline, |id, job, deadline| {
                    let progress = resources.migrate(id, job, guest.mem, cma, deadline);
                    counters.note_migration(progress.as_ref().ok().copied(), job.pages());
                    progress
                });
                if progress == Progress::Done {
                    return Ok(Step::Done(Response::MigratePages(batch.outcomes())));
                }
                Some(Job::MigrateBatch(batch))
            }
            Job::Dispose(result) => {
                let left = more(disposal.run(window, deadline), Job::Dispose(result));
                if left.is_none() {
                    result?;
                }
                left
            }
        };
        Ok(left.map_or(Step::Done(Response::NoData), Step::Job))
    }

    /// Abandons an unfinished command whose driver no longer waits for a response.
    /// [`CommandEngine::clean_up`] frees what takes time.
    pub(in crate::gpu) fn abandon(&mut self, job: Job) {
        if let Job::Build(build) = job {
            self.disposal.add_backed(build.abandon());
        }
    }

    /// Notes that a command was answered.
    pub(in crate::gpu) fn count_answer(&mut self, failed: bool) {
        self.counters.commands += 1;
        self.counters.errors += u64::from(failed);
    }

    fn create_blob(
        &mut self,
        c: &CreateBlob,
        entries: Entries,
        deadline: &mut Deadline,
    ) -> Result<Option<Job>, Fault> {
        let place = blob::reserve(&self.resources, c)?;
        match c.blob_mem.get() {
            blob_mem::GUEST => {
                let build = Build::blob(self.host.budget(), place, c, entries)?;
                Ok(Some(Job::Build(build)))
            }
            blob_mem::HOST3D if entries.count == 0 => {
                deadline.charge(Deadline::SYSCALL);
                blob::create_host_blob(&mut self.resources, &mut self.host, place, c)?;
                Ok(None)
            }
            // HOST3D_GUEST needs transfers by a rendering context.
            _ => Err(Fault::Parameter),
        }
    }

    /// RESOURCE_UNREF: unmaps the resource and disables scanouts that show it.
    fn unref(&mut self, id: ResourceId, deadline: &mut Deadline) -> Result<Job, Fault> {
        let Self { resources, scanouts, window, disposal, .. } = self;
        resources.get(id)?;
        if resources.host_blob(id).is_ok_and(|blob| blob.mapped.is_some()) {
            deadline.charge(Deadline::SYSCALL);
            blob::unmap_blob(resources, window, id)?;
        }
        scanouts.forget(id);
        if let Some(resource) = resources.remove(id) {
            disposal.add(id, resource);
        }
        Ok(Job::Dispose(Ok(())))
    }

    /// Drops everything that the guest created; scanouts keep their modes. [`CommandEngine::clean_up`]
    /// frees what takes time.
    pub(in crate::gpu) fn reset(&mut self) {
        self.scanouts.reset();
        self.disposal.add_all(self.resources.take_all());
    }

    /// Frees resources dropped by a reset or a command, until `deadline` passes.
    pub(in crate::gpu) fn clean_up(&mut self, deadline: &mut Deadline) -> Progress {
        self.disposal.run(&mut self.window, deadline)
    }

    /// Announces another mode for a scanout, or unplugs it; true when that is a change.
    pub(in crate::gpu) fn set_mode(&mut self, raw: u32, mode: Option<Size>) -> Result<bool, Fault> {
        self.scanouts.set_mode(raw, mode)
    }

    /// Copies missing parts of a scanout's current picture to the display.
    pub(in crate::gpu) fn refresh(
        &mut self,
        mem: &GuestMemoryMmap,
        id: ScanoutId,
        deadline: &mut Deadline,
    ) -> Progress {
        let Some(surface) = self.scanouts.surface(id) else { return Progress::Done };
        let Ok(resource) = self.resources.get(surface.resource) else { return Progress::Done };
        self.scanouts.fill(id, &ScanoutView { mem, resource, surface: &surface }, deadline)
    }

    /// Fills `frame` from the scanout, which must still show `surface`, until `deadline` passes.
    pub(in crate::gpu) fn capture(
        &self,
        mem: &GuestMemoryMmap,
        surface: Surface,
        frame: &mut Frame,
        deadline: &mut Deadline,
    ) -> Result<Progress, Fault> {
        let resource = self.resources.get(surface.resource)?;
        Ok(frame.fill(&ScanoutView { mem, resource, surface: &surface }, deadline))
    }

    /// A frame for a picture of `size`, charged to the device's budget.
    pub(in crate::gpu) fn frame(&self, size: Size) -> Result<Frame, FrameError> {
        Frame::new(size, self.host.budget())
    }

    /// The device's budget for host memory.
    pub(in crate::gpu) fn budget(&self) -> &Arc<Budget> {
        self.host.budget()
    }

    /// The cursor of a scanout.
    pub(in crate::gpu) fn cursor(&self, id: ScanoutId) -> Cursor {
        self.scanouts.cursor(id)
    }

    /// Statistics of the device.
    pub(in crate::gpu) fn stats(&self) -> GpuStats {
        let mut stats = GpuStats {
            host_bytes: self.host.used(),
            mapped_bytes: self.window.mapped_bytes(),
            counters: self.counters,
            ..GpuStats::default()
        };
        self.resources.count(&mut stats);
        stats
    }

    /// Guest pages that back resources, in rounds.
    pub(in crate::gpu) fn backing_ranges(
        &self,
        at: &mut BackingPosition,
        ranges: &mut Vec<GuestRange>,
        deadline: &mut Deadline,
    ) -> Progress {
        self.resources.backing_ranges(at, ranges, deadline)
    }
}
