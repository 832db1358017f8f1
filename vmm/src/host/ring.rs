// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Output that never makes its writer wait: a bounded ring with its own output thread.
//!
//! Serial output, log and metrics go to descriptors that may block: a pipe without a reader, a full
//! disk, a stopped terminal. A writer only copies into the ring, under a lock that is never held
//! across a system call. A record that does not fit is dropped entirely and counted.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

/// Stack of the thread, which has one buffer there.
const STACK: usize = 64 << 10;
/// Bytes taken out of the ring at a time.
const CHUNK: usize = 4096;
/// How long dropping a ring waits for its contents to be written.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The writer's end; cheap to clone. When the last one is dropped, the ring's contents have 0.2 s
/// to be written.
#[derive(Clone)]
pub struct Ring(Arc<Handle>);

struct Handle(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    name: &'static str,
    capacity: usize,
}

struct State {
    bytes: VecDeque<u8>,
    /// Where the bytes go; the thread has it once it runs.
    sink: Option<Box<dyn Write + Send>>,
    /// A chunk is being written to the sink.
    writing: bool,
    closed: bool,
    lost: Lost,
}

/// Dropped bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Records that found the ring full.
    pub records: u64,
    /// Bytes of these, and bytes that the sink refused.
    pub bytes: u64,
}

impl Ring {
    /// A ring of `capacity` bytes in front of `sink`. The thread is called `name`; it starts with
    /// the first record.
    pub fn new(name: &'static str, capacity: usize, sink: Box<dyn Write + Send>) -> Self {
        let state = State {
            bytes: VecDeque::new(),
            sink: Some(sink),
            writing: false,
            closed: false,
            lost: Lost::default(),
        };
        let shared = Shared { state: Mutex::new(state), changed: Condvar::new(), name, capacity };
        Self(Arc::new(Handle(Arc::new(shared))))
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
        let was_empty = state.bytes.is_empty();
        state.bytes.extend(record);
        let sink = state.sink.take();
        drop(state);
        if let Some(sink) = sink {
            shared.start(sink);
        } else if was_empty {
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

    /// Waits until everything is out, but no longer than `limit`; says whether it is.
    pub fn flush(&self, limit: Duration) -> bool {
        self.0.0.flush(limit)
    }
}

/// Reads a ring's loss counter without keeping the ring alive.
#[derive(Clone)]
pub struct LostWatch(Weak<Handle>);

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

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.flush(LAST_WORDS);
        // The thread is not joined: it may be inside a write that never returns.
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>, sink: Box<dyn Write + Send>) {
        let shared = Arc::clone(self);
        let run = move || shared.run(sink);
        let thread = Builder::new().name(self.name.into()).stack_size(STACK).spawn(run);
        if thread.is_err() {
            // No thread is left on this host: everything is lost, and counted as that.
            let mut state = self.lock();
            let bytes = std::mem::take(&mut state.bytes).len();
            state.lost.bytes += bytes as u64;
            state.sink = Some(Box::new(io::sink()));
        }
    }

    fn run(&self, mut sink: Box<dyn Write + Send>) {
        let mut chunk = [0; CHUNK];
        while let Some(length) = self.take(&mut chunk) {
            let written = sink.write_all(&chunk[..length]);
            let mut state = self.lock();
            state.writing = false;
            if written.is_err() {
                state.lost.bytes += length as u64;
            }
            self.changed.notify_all();
        }
    }

    /// Waits for bytes and moves the first of them to `chunk`; `None` at the ring's end.
    fn take(&self, chunk: &mut [u8; CHUNK]) -> Option<usize> {
        let waiting = |state: &mut State| state.bytes.is_empty() && !state.closed;
        let state = self.changed.wait_while(self.lock(), waiting);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.bytes.is_empty() {
            return None;
        }
        // Cannot fail: a deque reads as much as it has.
        let length = io::Read::read(&mut state.bytes, chunk).unwrap_or(0);
        // `read` takes from the first of the deque's two halves only.
        state.writing = true;
        Some(length)
    }

    fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.bytes.is_empty() || state.writing {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// A descriptor to write to, blocking or not: waits for room on the caller's thread.
pub struct Descriptor(pub OwnedFd);

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                Err(rustix::io::Errno::AGAIN) => wait_for_room(&self.0, None)?,
                other => return Ok(other?),
            };
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until `fd` is writable, for at most `limit`; returns whether it is.
fn wait_for_room(fd: &impl AsFd, limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map(|limit| rustix::event::Timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let mut fds = [PollFd::new(fd, PollFlags::OUT)];
    match poll(&mut fds, limit.as_ref()) {
        Ok(0) => Ok(false),
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Prints `line` on standard error, unless that blocks for 0.2 s: for final messages of a process
/// without a ring.
pub fn say(line: &str) {
    let stderr = io::stderr();
    if wait_for_room(&stderr, Some(LAST_WORDS)).unwrap_or(false) {
        // A pipe that polls as writable accepts PIPE_BUF bytes at once.
        let line = &line.as_bytes()[..line.len().min(CHUNK)];
        // There is no other place to report to.
        let _ = rustix::io::write(&stderr, line);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A reader that reads nothing until released.
    struct Stuck {
        entered: Sender<()>,
        go_on: Receiver<()>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.entered.send(()).unwrap();
            self.go_on.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_gets_out_in_order() {
        let memory = Memory::default();
        let ring = Ring::new("test", 1 << 16, Box::new(memory.clone()));
        let mut expected = Vec::new();
        for number in 0..1000 {
            let line = format!("{number}\n");
            assert!(ring.push(line.as_bytes()));
            expected.extend_from_slice(line.as_bytes());
            assert!(ring.flush(SOON));
        }
        assert_eq!(*memory.0.lock().unwrap(), expected);
        assert_eq!(ring.lost(), Lost::default());
    }

    #[test]
    fn a_reader_that_takes_nothing_costs_records_and_no_time() {
        let ((entered, enters), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel());
        let ring = Ring::new("test", 100, Box::new(Stuck { entered, go_on: goes_on }));
        assert!(ring.push(b"first"));
        enters.recv().unwrap();
        assert!(ring.push(&[0; 100]), "the first record has left the ring");
        for _ in 0..1000 {
            assert!(!ring.push(b"more"));
        }
        assert_eq!(ring.lost(), Lost { records: 1000, bytes: 4000 });
        assert!(!ring.flush(Duration::from_millis(1)));
        go_on.send(()).unwrap();
        enters.recv().unwrap();
        go_on.send(()).unwrap();
        assert!(ring.flush(SOON));
        assert!(ring.push(b"again"));
    }

    #[test]
    fn what_the_sink_refuses_is_counted() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let ring = Ring::new("test", 100, Box::new(Full));
        assert!(ring.push(b"lost"));
        assert!(ring.flush(SOON));
        assert_eq!(ring.lost(), Lost { records: 0, bytes: 4 });
    }

    #[test]
    fn a_long_record_through_a_full_fifo_stays_whole() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let ring = Ring::new("test", 1 << 20, Box::new(Descriptor(writer)));
        let lines: Vec<String> =
            (0..40).map(|n| format!("{}\n", n.to_string().repeat(9000))).collect();
        for line in &lines {
            assert!(ring.push(line.as_bytes()));
        }
        let expected: Vec<u8> = lines.concat().into_bytes();
        let mut seen = Vec::new();
        let mut buffer = [0; 1000];
        while seen.len() < expected.len() {
            let mut fds = [PollFd::new(&reader, PollFlags::IN)];
            poll(&mut fds, None).unwrap();
            let length = rustix::io::read(&reader, &mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..length]);
        }
        assert!(seen == expected);
    }
}
