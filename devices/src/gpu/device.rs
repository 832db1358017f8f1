// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as a transport sees it: two queues, a configuration space, display events.

use std::sync::Arc;

use mm::budget::Budget;
use mm::units::GuestRange;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_GPU;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::buffer::{SegmentReader, reply};
use super::capture::{Capture, CaptureError};
use super::command_engine::{CommandEngine, Guest, Step};
use super::display_mode::ModeError;
use super::large::WantsBlocks;
use super::ops::Job;
use super::protocol::{
    Command, CommandBody, CommandHeader, EVENT_DISPLAY, SHM_ID_HOST_VISIBLE, code, feature,
};
use super::resource::BackingPosition;
use super::response::{Fault, Response};
use super::{GpuParts, GpuSettings, GpuStats};
use crate::display::{FrameSnapshot, ScanoutId, Size};
use crate::virtio::{
    Activation, Chain, Deadline, DeviceFailure, DeviceQueue, GuestMemoryMmap, Interrupt, Progress,
    QueueError, Segments, SharedRegion, VirtioDevice, read_config_slice,
};

/// Number of the control queue.
pub const CONTROL_QUEUE: u16 = 0;
/// Number of the cursor queue.
pub const CURSOR_QUEUE: u16 = 1;

/// Depth of the control queue, which is also the longest chain: Linux puts the entries of a backing
/// in one descriptor a page, 256 each, so that 1024 carry those of 1 GiB in single pages.
const CONTROL_SIZE: u16 = 1024;
const CURSOR_SIZE: u16 = 64;

/// Offset of `events_clear` in the configuration space.
const EVENTS_CLEAR: u64 = 4;

/// Name in the log.
const NAME: &str = "gpu";

/// The driver's side while the device is active.
struct Session {
    mem: Arc<GuestMemoryMmap>,
    features: u64,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<SessionQueue>,
}

/// A queue, and the command of it that a deadline has cut.
struct SessionQueue {
    queue: DeviceQueue,
    cut: Option<Running>,
}

/// A command that is being executed.
struct Running {
    head: u16,
    header: CommandHeader,
    buffer: Segments,
    job: Job,
}

/// Outcome of a command in one round.
enum Outcome {
    /// The deadline passed.
    Cut(Running),
    /// It is answered: the head of its buffer, and bytes written.
    Answered(u16, u32),
}

/// A virtio-gpu.
pub struct Gpu {
    engine: CommandEngine,
    session: Option<Session>,
    events: u32,
    window: Option<SharedRegion>,
}

impl Gpu {
    /// A device that no driver has found yet.
    ///
    /// # Errors
    ///
    /// [`ModeError`] when the settings name a mode that no scanout can have.
    pub fn new(settings: GpuSettings, parts: GpuParts) -> Result<Self, ModeError> {
        super::mode(settings.mode.width.into(), settings.mode.height.into())?;
        Ok(Self {
            session: None,
            events: 0,
            window: settings.window,
            engine: CommandEngine::new(settings, parts),
        })
    }

    /// Number of scanouts.
    pub fn scanouts(&self) -> usize {
        self.engine.scanouts().count()
    }

    /// The mode that a scanout is announced with; `None` when it is unplugged.
    pub fn mode(&self, scanout: ScanoutId) -> Option<Size> {
        self.engine.scanouts().mode(scanout)
    }

    /// Announces another mode, or unplugs the scanout; the driver is notified.
    ///
    /// # Errors
    ///
    /// [`ModeError`] when there is no such scanout, or it cannot have that mode.
    pub fn set_mode(&mut self, scanout: u32, mode: Option<Size>) -> Result<(), ModeError> {
        if let Some(mode) = mode {
            super::mode(mode.width.into(), mode.height.into())?;
        }
        let changed = self.engine.set_mode(scanout, mode);
        if changed.map_err(|_| ModeError::NoScanout(scanout))? {
            self.events |= EVENT_DISPLAY;
            if let Some(session) = &self.session
                && let Err(error) = session.interrupt.signal_config_change()
            {
                tracing::warn!(%error, "cannot notify the driver of a new mode");
            }
        }
        Ok(())
    }

    /// Copies missing parts of a scanout's picture to the display until `deadline` passes, for a
    /// new viewer. See [`refresh`](super::refresh) for the whole of it.
    pub fn refresh(&mut self, scanout: ScanoutId, deadline: &mut Deadline) -> Progress {
        match &self.session {
            Some(session) => self.engine.refresh(&session.mem, scanout, deadline),
            None => Progress::Done,
        }
    }

    /// Continues a capture of a scanout until it is complete or `deadline` passes. See
    /// [`capture`](super::capture) for the whole of it.
    ///
    /// # Errors
    ///
    /// [`CaptureError`] when the scanout is disabled or has no resource, or there is no memory for
    /// the picture.
    pub fn capture(
        &self,
        capture: &mut Capture,
        deadline: &mut Deadline,
    ) -> Result<Option<FrameSnapshot>, CaptureError> {
        let session = self.session.as_ref().ok_or(CaptureError::Dark)?;
        capture.run(&self.engine, &session.mem, deadline)
    }

    /// The budget for host memory that this device, its display and its viewers share.
    pub fn budget(&self) -> &Arc<Budget> {
        self.engine.budget()
    }

    /// Statistics of the device.
    pub fn stats(&self) -> GpuStats {
        self.engine.stats()
    }

    /// Adds guest pages that resources are backed by to `ranges`, in no order, until `deadline`
    /// passes; `at` says where to go on. See [`backing_ranges`](super::backing_ranges).
    pub(super) fn backing_ranges(
        &self,
        at: &mut BackingPosition,
        ranges: &mut Vec<GuestRange>,
        deadline: &mut Deadline,
    ) -> Progress {
        self.engine.backing_ranges(at, ranges, deadline)
    }

    /// Calls `tell` when a resource gets a backing of a block (2 MiB) or more, with a limited rate:
    /// a device that reads it sequentially benefits from huge pages. Called with the device locked,
    /// on a vCPU thread; `None` disables it.
    pub fn on_large_backing(&mut self, tell: Option<WantsBlocks>) {
        self.engine.on_large_backing(tell);
    }

    /// Recounts everything; panics where a count is off.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn validate(&self) {
        self.engine.validate();
    }

    fn config(&self) -> [U32; 4] {
        // At most 16.
        let scanouts = self.engine.scanouts().count() as u32;
        [self.events.into(), U32::ZERO, scanouts.into(), U32::ZERO]
    }

    /// Takes a command from a buffer and executes it, until `deadline` passes.
    fn begin(
        &mut self,
        session: (&GuestMemoryMmap, u64),
        queue: u16,
        chain: Chain,
        limit: u16,
        deadline: &mut Deadline,
    ) -> Outcome {
        let (mem, features) = session;
        let head = chain.head_index();
        deadline.charge(Deadline::COMMAND);
        let buffer = match Segments::collect(chain, limit) {
            Ok(buffer) => buffer,
            Err(error) => {
                // There is no place for an answer.
                tracing::warn!(%error, "bad buffer from the GPU driver");
                return Outcome::Answered(head, 0);
            }
        };
        let descriptors = buffer.readable.len() + buffer.writable.len();
        deadline.charge(descriptors as u64 * Deadline::ENTRY);
        let (header, command) = self.decode(mem, queue, &buffer);
        let guest = Guest { mem, features, buffer: &buffer };
        match command.and_then(|command| self.engine.begin(guest, command, deadline)) {
            Ok(Step::Job(job)) => {
                self.go_on(session, Running { head, header, buffer, job }, deadline)
            }
            Ok(Step::Done(response)) => self.answer(mem, head, &header, &buffer, Ok(response)),
            Err(fault) => self.answer(mem, head, &header, &buffer, Err(fault)),
        }
    }

    /// Continues a command until it is done or `deadline` passes.
    fn go_on(
        &mut self,
        (mem, features): (&GuestMemoryMmap, u64),
        running: Running,
        deadline: &mut Deadline,
    ) -> Outcome {
        let Running { head, header, buffer, job } = running;
        let guest = Guest { mem, features, buffer: &buffer };
        let answer = match self.engine.go_on(guest, job, deadline) {
            Ok(Step::Job(job)) => return Outcome::Cut(Running { head, header, buffer, job }),
            Ok(Step::Done(response)) => Ok(response),
            Err(fault) => Err(fault),
        };
        self.answer(mem, head, &header, &buffer, answer)
    }

    fn answer(
        &mut self,
        mem: &GuestMemoryMmap,
        head: u16,
        header: &CommandHeader,
        buffer: &Segments,
        answer: Result<Response, Fault>,
    ) -> Outcome {
        self.engine.count_answer(answer.is_err());
        if let Err(fault) = &answer {
            tracing::debug!(command = header.kind.get(), %fault, "command failed");
        }
        Outcome::Answered(head, reply(mem, buffer, header, answer))
    }

    /// Decodes the contents of `buffer`.
    fn decode(
        &self,
        mem: &GuestMemoryMmap,
        queue: u16,
        buffer: &Segments,
    ) -> (CommandHeader, Result<Command, Fault>) {
        let mut reader = SegmentReader::new(buffer, mem);
        let mut body = CommandBody::new(&mut reader, buffer.readable_len());
        let header: CommandHeader = match body.take() {
            Ok(header) => header,
            Err(error) => return (CommandHeader::default(), Err(error.into())),
        };
        let kind = header.kind.get();
        if is_cursor_command(kind) != (queue == CURSOR_QUEUE) {
            return (header, Err(Fault::NotOffered));
        }
        let command = Command::decode(kind, &mut body, self.engine.max_entries());
        (header, command.map_err(Fault::from))
    }

    /// Executes commands of a queue, in order, until it is empty or `deadline` passes.
    fn round(
        &mut self,
        session: &mut Session,
        index: u16,
        deadline: &mut Deadline,
    ) -> Result<Progress, QueueError> {
        let Session { mem, features, queues, .. } = session;
        let Some(SessionQueue { queue, cut }) = queues.get_mut(usize::from(index)) else {
            return Ok(Progress::Done);
        };
        if !queue.ready() {
            // The driver has stopped it, and waits for no answer.
            if let Some(running) = cut.take() {
                self.engine.abandon(running.job);
            }
            return Ok(self.engine.clean_up(deadline));
        }
        let depth = queue.size();
        let guest = (&**mem, *features);
        loop {
            let outcome = match cut.take() {
                Some(running) => self.go_on(guest, running, deadline),
                None => match queue.pop()? {
                    Some(chain) => self.begin(guest, index, chain, depth, deadline),
                    None => break,
                },
            };
            match outcome {
                Outcome::Answered(head, written) => queue.push(head, written)?,
                Outcome::Cut(running) => *cut = Some(running),
            }
            if cut.is_some() || deadline.passed() {
                queue.signal();
                return Ok(Progress::More);
            }
        }
        queue.finish();
        Ok(Progress::Done)
    }
}

fn is_cursor_command(kind: u32) -> bool {
    matches!(kind, code::UPDATE_CURSOR | code::MOVE_CURSOR)
}

impl VirtioDevice for Gpu {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_GPU
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | feature::EDID
            | feature::RESOURCE_UUID
            | feature::RESOURCE_BLOB
            | feature::MIGRATE
            | feature::MIGRATE_PAGES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[CONTROL_SIZE, CURSOR_SIZE]
    }

    fn shared_region(&self, id: u8) -> Option<SharedRegion> {
        self.window.filter(|_| id == SHM_ID_HOST_VISIBLE)
    }

    /// A driver that migrates pages must not wait for the event loop: with this, the host has
    /// responded by the time the notification returns. For other drivers the event loop copies and
    /// the vCPU continues.
    fn runs_at_notify(&self, queue: u16) -> bool {
        let moves = |session: &Session| session.features & feature::MIGRATE != 0;
        queue == CONTROL_QUEUE && self.session.as_ref().is_none_or(moves)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_slice(self.config().as_bytes(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EVENTS_CLEAR, Ok(bits)) = (offset, data.try_into()) {
            self.events &= !u32::from_le_bytes(bits);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailure> {
        let Activation { mem, features, interrupt, queues } = activation;
        let queues = queues.into_iter().map(|queue| SessionQueue { queue, cut: None }).collect();
        self.session = Some(Session { mem, features, interrupt, queues });
        Ok(())
    }

    fn reset(&mut self) {
        // The session's unfinished command on each queue is dropped with it.
        let queues = self.session.take().into_iter().flat_map(|session| session.queues);
        for running in queues.filter_map(|queue| queue.cut) {
            self.engine.abandon(running.job);
        }
        self.engine.reset();
        self.events = 0;
    }

    fn clean_up(&mut self, deadline: &mut Deadline) -> Progress {
        self.engine.clean_up(deadline)
    }

    fn process(&mut self, queue: u16, deadline: &mut Deadline) -> Result<Progress, DeviceFailure> {
        // Taken out during the call, so that commands can use the rest of the device.
        let Some(mut session) = self.session.take() else { return Ok(Progress::Done) };
        let result = self.round(&mut session, queue, deadline);
        self.session = Some(session);
        result.map_err(|error| DeviceFailure::new(NAME, error))
    }
}
