// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as a transport sees it: two queues, a configuration space, display events.

use std::io::Read;
use std::sync::Arc;

use mm::units::GuestRange;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_GPU;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::edid::{MAX_EXTENT, MIN_EXTENT};
use super::engine::{Engine, Guest, WantsBlocks};
use super::fence::answer_header;
use super::protocol::{Body, Command, EVENT_DISPLAY, Header, SHM_ID_HOST_VISIBLE, code, feature};
use super::response::{Fault, Response, encode};
use super::{GpuParts, GpuSettings, GpuStats};
use crate::display::{ScanoutId, Size};
use crate::throttle::Throttle;
use crate::virtio::{
    Activation, Chain, Deadline, DeviceFailure, DeviceQueue, GuestMemory, Interrupt, Progress,
    Segments, SharedRegion, VirtioDevice, read_config_slice,
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

/// A mode that no scanout can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// The device has fewer scanouts.
    #[error("there is no scanout {0}")]
    NoScanout(u32),
    /// EDID has twelve bits for each extent, and Linux wants 32 pixels.
    #[error("{} by {} pixels: give {MIN_EXTENT} to {MAX_EXTENT} for each", .0.width, .0.height)]
    Extent(Size),
}

/// Checks a mode that a person asks for.
fn check_mode(mode: Size) -> Result<(), ModeError> {
    let good = |extent| (MIN_EXTENT..=MAX_EXTENT).contains(&extent);
    if good(mode.width) && good(mode.height) { Ok(()) } else { Err(ModeError::Extent(mode)) }
}

/// The driver's side while the device is active.
struct Session {
    mem: Arc<GuestMemory>,
    features: u64,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<DeviceQueue>,
}

/// A virtio-gpu.
pub struct Gpu {
    engine: Engine,
    session: Option<Session>,
    events: u32,
    window: Option<SharedRegion>,
    cma: Vec<GuestRange>,
    throttle: Throttle,
}

impl Gpu {
    /// A device that no driver has found yet.
    pub fn new(settings: GpuSettings, parts: GpuParts) -> Result<Self, ModeError> {
        check_mode(settings.mode)?;
        Ok(Self {
            engine: Engine::new(&settings, parts),
            session: None,
            events: 0,
            window: settings.window,
            cma: settings.cma,
            throttle: Throttle::default(),
        })
    }

    /// Number of scanouts.
    pub fn scanouts(&self) -> usize {
        self.engine.scanouts.count()
    }

    /// The mode that a scanout is announced with; `None` when it is unplugged.
    pub fn mode(&self, scanout: ScanoutId) -> Option<Size> {
        self.engine.scanouts.get(scanout)?.mode
    }

    /// Announces another mode, or unplugs the scanout; the driver hears of it.
    pub fn set_mode(&mut self, scanout: u32, mode: Option<Size>) -> Result<(), ModeError> {
        mode.map_or(Ok(()), check_mode)?;
        let news = self.engine.set_mode(scanout, mode);
        if news.map_err(|_| ModeError::NoScanout(scanout))? {
            self.events |= EVENT_DISPLAY;
            if let Some(session) = &self.session
                && let Err(error) = session.interrupt.signal_config_change()
            {
                tracing::warn!(%error, "cannot tell the driver of a new mode");
            }
        }
        Ok(())
    }

    /// Gives the display the picture of a scanout as it is now; for a first look at it.
    pub fn refresh(&mut self, scanout: ScanoutId) {
        if let Some(session) = &self.session {
            self.engine.refresh(&session.mem, scanout);
        }
    }

    /// What the device holds and has counted.
    pub fn stats(&self) -> GpuStats {
        self.engine.stats(&self.cma)
    }

    /// Guest pages that resources are backed by, in no order.
    pub fn backing_ranges(&self) -> impl Iterator<Item = GuestRange> + '_ {
        self.engine.backing_ranges()
    }

    /// Has `tell` called whenever a resource gets a backing of a block (2 MiB) or more: a device
    /// that reads it in one sweep is better served by huge pages. Called with the device locked, on
    /// a vCPU's thread; `None` ends it.
    pub fn on_large_backing(&mut self, tell: Option<WantsBlocks>) {
        self.engine.wants_blocks = tell;
    }

    /// Recounts everything; panics where a count is off.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn validate(&self) {
        self.engine.validate();
    }

    fn config(&self) -> [U32; 4] {
        let scanouts = u32::try_from(self.engine.scanouts.count()).unwrap_or(0);
        [self.events.into(), U32::ZERO, scanouts.into(), U32::ZERO]
    }

    /// One buffer: a command, and room for its answer. Returns the bytes written.
    fn handle(&mut self, guest: Guest<'_>, queue: u16, chain: Chain, limit: u16) -> u32 {
        let segments = match Segments::collect(chain, limit) {
            Ok(segments) => segments,
            Err(error) => {
                // There is no telling where an answer would go.
                self.complain(&error);
                return 0;
            }
        };
        let (header, answer) = self.answer(guest, queue, &segments);
        self.engine.counters.commands += 1;
        if let Err(fault) = &answer {
            self.engine.counters.errors += 1;
            tracing::debug!(command = header.kind.get(), %fault, "command failed");
        }
        reply(guest.mem, &segments, &header, answer)
    }

    /// Decodes and executes what is in `segments`.
    fn answer(
        &mut self,
        guest: Guest<'_>,
        queue: u16,
        segments: &Segments,
    ) -> (Header, Result<Response, Fault>) {
        let mut reader = SegmentReader { segments, mem: guest.mem, at: 0 };
        let left = usize::try_from(segments.readable_len()).unwrap_or(usize::MAX);
        let mut body = Body::new(&mut reader, left);
        let header: Header = match body.take() {
            Ok(header) => header,
            Err(fault) => return (Header::default(), Err(fault)),
        };
        let kind = header.kind.get();
        if is_cursor_command(kind) != (queue == CURSOR_QUEUE) {
            return (header, Err(Fault::NotOffered));
        }
        let command = Command::decode(kind, &mut body, self.engine.max_entries);
        (header, command.and_then(|command| self.engine.execute(guest, command)))
    }

    fn complain(&mut self, error: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.throttle.admit() {
            tracing::warn!(%error, suppressed, "the GPU driver gave a bad buffer");
        }
    }

    /// At most one queue's depth of buffers.
    fn run(&mut self, session: &mut Session, index: u16) -> Result<(), DeviceFailure> {
        let Session { mem, features, queues, .. } = session;
        let guest = Guest { mem, features: *features };
        let Some(queue) = queues.get_mut(usize::from(index)) else { return Ok(()) };
        let failure = |error| DeviceFailure::new(NAME, error);
        let depth = queue.size();
        for _ in 0..depth {
            let Some(chain) = queue.pop().map_err(failure)? else { break };
            let head = chain.head_index();
            let written = self.handle(guest, index, chain, depth);
            queue.push(head, written).map_err(failure)?;
        }
        queue.finish().map_err(failure)
    }
}

fn is_cursor_command(kind: u32) -> bool {
    matches!(kind, code::UPDATE_CURSOR | code::MOVE_CURSOR)
}

/// Writes the answer; an error in its place when there is too little room for it.
///
/// Linux leaves no room at all behind a cursor command.
fn reply(
    mem: &GuestMemory,
    segments: &Segments,
    request: &Header,
    answer: Result<Response, Fault>,
) -> u32 {
    let room = segments.writable_len();
    let header = answer_header(request);
    let mut bytes = encode(header, &answer);
    if bytes.len() as u64 > room {
        bytes = encode(header, &Err(Fault::Malformed));
    }
    if bytes.len() as u64 > room {
        return 0;
    }
    u32::try_from(segments.write(mem, 0, &bytes)).unwrap_or(0)
}

/// The readable bytes of a buffer, one after another.
struct SegmentReader<'a> {
    segments: &'a Segments,
    mem: &'a GuestMemory,
    at: u64,
}

impl Read for SegmentReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let got = self.segments.read(self.mem, self.at, out);
        self.at += got as u64;
        Ok(got)
    }
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

    /// A driver that moves pages does so where it must not wait: by the time that its notification
    /// returns, the host has answered, however busy the host is. Others keep their vCPUs to
    /// themselves while the event loop copies.
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
        self.engine.start(&mem);
        self.session = Some(Session { mem, features, interrupt, queues });
        Ok(())
    }

    fn reset(&mut self) {
        self.engine.reset();
        self.session = None;
        self.events = 0;
    }

    fn process(&mut self, queue: u16, _deadline: &mut Deadline) -> Result<Progress, DeviceFailure> {
        // Taken out for the time of the call, so that commands may use the rest of the device.
        let Some(mut session) = self.session.take() else { return Ok(Progress::Done) };
        let result = self.run(&mut session, queue);
        self.session = Some(session);
        result.map(|()| Progress::Done)
    }
}
