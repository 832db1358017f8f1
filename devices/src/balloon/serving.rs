// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queues whose buffers need work: one buffer after the other, each as far as the deadline allows.
//! The rest is done in later rounds, before the next buffer.

use std::sync::Arc;

use super::balloon_core::BalloonCore;
use super::work::{BufferStep, Work};
use crate::virtio::{
    Chain, ChainError, Deadline, DeviceQueue, GuestMemoryMmap, Progress, QueueError, Segments,
};

/// A buffer that is not yet returned to the driver.
#[derive(Debug)]
struct Buffer {
    head: u16,
    /// Bytes of it written.
    written: u32,
    work: Work,
    /// The host had no memory for it.
    waits: bool,
}

/// The current buffer of one queue.
#[derive(Debug, Default)]
pub(super) struct Serving {
    buffer: Option<Buffer>,
}

impl Serving {
    /// Handles the buffers of `queue` until it is empty, `deadline` passes or one has to wait for
    /// the host. `begin` inspects a buffer; it returns the work to do before the buffer is
    /// returned, and the bytes written.
    pub(super) fn process(
        &mut self,
        queue: &mut DeviceQueue,
        core: &mut BalloonCore,
        deadline: &mut Deadline,
        collect: fn(Chain, u16) -> Result<Segments, ChainError>,
        mut begin: impl FnMut(
            &mut BalloonCore,
            &GuestMemoryMmap,
            &Segments,
            &mut Deadline,
        ) -> (Work, u32),
    ) -> Result<Progress, QueueError> {
        let mem = Arc::clone(queue.mem());
        loop {
            let mut buffer = match self.buffer.take() {
                Some(buffer) => buffer,
                None if deadline.passed() => {
                    queue.signal();
                    return Ok(Progress::More);
                }
                None => {
                    let Some(chain) = queue.pop()? else { break };
                    deadline.charge(Deadline::COMMAND);
                    let head = chain.head_index();
                    let (work, written) = match collect(chain, queue.size()) {
                        Ok(buffer) => begin(core, &mem, &buffer, deadline),
                        Err(error) => {
                            core.journal.bad_buffer(error);
                            (Work::default(), 0)
                        }
                    };
                    Buffer { head, written, work, waits: false }
                }
            };
            let step = buffer.work.run(&mut core.pool, &mut core.journal, deadline);
            if step == BufferStep::Done {
                queue.push(buffer.head, buffer.written)?;
                continue;
            }
            if step == BufferStep::Wait && !buffer.waits {
                core.journal.counters.deflate_waits += 1;
            }
            buffer.waits = step == BufferStep::Wait;
            self.buffer = Some(buffer);
            queue.signal();
            return Ok(Progress::more_if(step == BufferStep::More));
        }
        queue.finish();
        Ok(Progress::Done)
    }

    /// The remaining work for the current buffer.
    pub(super) fn work(&self) -> Option<&Work> {
        self.buffer.as_ref().map(|buffer| &buffer.work)
    }

    /// Whether the current buffer waits for host memory.
    pub(super) fn waits(&self) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| buffer.waits)
    }

    /// The driver was reset: drops its buffer.
    pub(super) fn reset(&mut self) {
        self.buffer = None;
    }
}
