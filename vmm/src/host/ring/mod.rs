// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Output that never makes its writer wait: a bounded ring with its own output thread.
//!
//! Serial output, log and metrics go to descriptors that may block: a pipe without a reader, a full
//! disk, a stopped terminal. A writer only copies into the ring, under a lock that is never held
//! across a system call. A record that does not fit is dropped entirely and counted.
//!
//! A write that fails drops nothing: the thread tries the same bytes again when there is more to
//! write, so that who reads later finds whole lines. Only the rest of a line is skipped whose first
//! half a reader took along.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Stack of the thread, which has one buffer there.
const STACK: usize = 64 << 10;
/// Bytes taken out of the ring at a time.
const CHUNK: usize = 4096;
/// How long dropping a ring waits for its contents to be written.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How much longer for a thread that has not begun to write: the host is busy, and no reader
/// is to blame.
const BUSY_HOST: Duration = Duration::from_secs(1);
/// Least time between two writes of which the first has failed.
const RETRY: Duration = Duration::from_millis(100);

/// The writer's end; cheap to clone. When the last one is dropped, a write of the ring's contents
/// may block for 0.2 s.
#[derive(Clone)]
pub struct Ring(Arc<RingCloser>);

/// Closes the ring when the last writer drops it.
struct RingCloser(Arc<RingBuffer>);

/// What the writers and the thread share.
struct RingBuffer {
    state: Mutex<RingState>,
    changed: Condvar,
    name: &'static str,
    capacity: usize,
}

struct RingState {
    bytes: VecDeque<u8>,
    /// Where the bytes go; the thread has it once it runs.
    sink: Option<Box<dyn Write + Send>>,
    /// There is a thread.
    running: bool,
    /// A chunk is being written to the sink.
    writing: bool,
    /// Writes that failed since the last that did not.
    failures: u64,
    /// A failed write is to be tried again.
    wanted: bool,
    /// Threads that wait until everything is out.
    flushing: usize,
    closed: bool,
    lost: Lost,
}

/// Dropped bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Records that found the ring full.
    pub records: u64,
    /// Bytes of these, and of lines whose reader went away in the middle.
    pub bytes: u64,
}

impl Ring {
    /// A ring of `capacity` bytes in front of `sink`. The thread is called `name`; it starts with
    /// the first record.
    pub fn new(name: &'static str, capacity: usize, sink: Box<dyn Write + Send>) -> Self {
        let state = RingState {
            bytes: VecDeque::new(),
            sink: Some(sink),
            running: false,
            writing: false,
            failures: 0,
            wanted: false,
            flushing: 0,
            closed: false,
            lost: Lost::default(),
        };
        let shared =
            RingBuffer { state: Mutex::new(state), changed: Condvar::new(), name, capacity };
        Self(Arc::new(RingCloser(Arc::new(shared))))
    }

    /// Accepts or drops the whole `record`; returns true if accepted.
    pub fn push(&self, record: &[u8]) -> bool {
        let shared = &self.0.0;
        let mut state = shared.lock();
        if state.bytes.len() + record.len() > shared.capacity {
            state.lost.records += 1;
            state.lost.bytes += record.len() as u64;
            return false;
        }
        let waits = state.bytes.is_empty() || state.failures > 0;
        state.bytes.extend(record);
        state.wanted = true;
        let runs = std::mem::replace(&mut state.running, true);
        drop(state);
        if !runs {
            shared.start();
        } else if waits {
            shared.changed.notify_all();
        }
        true
    }

    /// Bytes dropped so far.
    pub fn lost(&self) -> Lost {
        self.0.0.lock().lost
    }

    /// A handle to read the loss counter while the ring lives.
    pub fn watch(&self) -> LostWatch {
        LostWatch(Arc::downgrade(&self.0))
    }

    /// Waits until everything is out or a write fails, but no longer than `limit` for a write that
    /// blocks; says whether everything is out.
    pub fn flush(&self, limit: Duration) -> bool {
        self.0.0.flush(limit)
    }
}

/// Reads a ring's loss counter without keeping the ring alive.
#[derive(Clone)]
pub struct LostWatch(Weak<RingCloser>);

impl LostWatch {
    /// Bytes dropped so far; 0 once the ring is gone.
    pub fn lost(&self) -> Lost {
        self.0.upgrade().map(|handle| handle.0.lock().lost).unwrap_or_default()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("name", &self.0.0.name).finish_non_exhaustive()
    }
}

impl Write for Ring {
    /// Never fails: bytes that do not fit are counted as lost.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for RingCloser {
    fn drop(&mut self) {
        self.0.flush(LAST_WORDS);
        // The thread is not joined: it may be inside a write that never returns.
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl RingBuffer {
    fn lock(&self) -> MutexGuard<'_, RingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let run = move || shared.run();
        let thread = Builder::new().name(self.name.into()).stack_size(STACK).spawn(run);
        if thread.is_err() {
            // No thread is left on this host: this is lost, and the next record tries again.
            let mut state = self.lock();
            state.running = false;
            let bytes = std::mem::take(&mut state.bytes).len();
            state.lost.bytes += bytes as u64;
        }
    }

    fn run(&self) {
        let Some(mut sink) = self.lock().sink.take() else { return };
        let mut chunk = [0; CHUNK];
        let mut line = Line::Whole;
        while let Some(length) = self.take(&mut chunk) {
            self.write(&mut *sink, &chunk[..length], &mut line);
            let mut state = self.lock();
            state.writing = false;
            self.changed.notify_all();
        }
    }

    /// Writes all of `rest`, however often that fails, until the ring is closed.
    fn write(&self, sink: &mut dyn Write, mut rest: &[u8], line: &mut Line) {
        while !rest.is_empty() {
            if *line == Line::Skipped {
                let end = rest.iter().position(|byte| *byte == b'\n');
                let skipped = end.map_or(rest.len(), |end| end + 1);
                self.lock().lost.bytes += skipped as u64;
                rest = &rest[skipped..];
                if end.is_some() {
                    *line = Line::Whole;
                }
                continue;
            }
            let error = match sink.write(rest) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(length) => {
                    let whole = rest[length - 1] == b'\n';
                    *line = if whole { Line::Whole } else { Line::Begun };
                    rest = &rest[length..];
                    self.lock().failures = 0;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            if error.kind() == io::ErrorKind::BrokenPipe && *line == Line::Begun {
                *line = Line::Skipped;
            }
            if !self.wait_after_failure() {
                self.lock().lost.bytes += rest.len() as u64;
                return;
            }
        }
    }

    /// Waits until a failed write should be tried again; false at the ring's end.
    fn wait_after_failure(&self) -> bool {
        let mut state = self.lock();
        state.failures += 1;
        state.wanted = false;
        self.changed.notify_all();
        let resting = |state: &mut RingState| !state.closed;
        let rested = self.changed.wait_timeout_while(state, RETRY, resting);
        let state = rested.unwrap_or_else(PoisonError::into_inner).0;
        let idle = |state: &mut RingState| !state.closed && !state.wanted;
        let state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        !state.closed
    }

    /// Waits for bytes and moves the first of them to `chunk`; `None` at the ring's end. What is cut
    /// off is cut off behind a line where it can be: pipes take up to PIPE_BUF bytes, which is a
    /// chunk, as a whole or not at all.
    fn take(&self, chunk: &mut [u8; CHUNK]) -> Option<usize> {
        let waiting = |state: &mut RingState| state.bytes.is_empty() && !state.closed;
        let state = self.changed.wait_while(self.lock(), waiting);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.bytes.is_empty() {
            return None;
        }
        let mut length = state.bytes.len().min(CHUNK);
        if length < state.bytes.len() {
            let line = state.bytes.range(..length).rposition(|byte| *byte == b'\n');
            length = line.map_or(length, |end| end + 1);
        }
        for (to, from) in chunk.iter_mut().zip(state.bytes.drain(..length)) {
            *to = from;
        }
        state.writing = true;
        if state.flushing > 0 {
            self.changed.notify_all();
        }
        Some(length)
    }

    fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        let failures = state.failures;
        state.wanted = true;
        state.flushing += 1;
        self.changed.notify_all();
        while (!state.bytes.is_empty() || state.writing) && state.failures <= failures {
            let blocked = state.writing || state.failures > 0;
            let end = if blocked { deadline } else { deadline + BUSY_HOST };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.flushing -= 1;
        state.bytes.is_empty() && !state.writing
    }
}

/// Where the output stands in its last line.
#[derive(PartialEq)]
enum Line {
    /// At its end.
    Whole,
    /// In the middle.
    Begun,
    /// In the middle, and its first half is gone: the rest is not written.
    Skipped,
}

#[cfg(test)]
mod tests;
