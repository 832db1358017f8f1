// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A raw image by io_uring: data moves directly between the page cache or the disk and guest pages,
//! with any number of pieces in flight.
//!
//! Linux passes buffered writes to a file of tmpfs to a worker thread each, although they wait for no
//! disk. There, writes are made by system calls.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use mm::units::SaturatingInto;

use super::calls::{CallsEngine, write_zeroes};
use super::{
    DiskAction, DiskEngine, Piece, RingConfig, Started, fallocate_mode, is_unsupported, moved,
};

/// Largest piece. Reset and image replacement wait for pieces in flight.
const PIECE: usize = 4 << 20;
/// Entries of the submission queue, at most; more pieces than that are submitted in turns.
const SUBMISSIONS: u16 = 256;

/// The operation of a piece in flight, to interpret its result.
#[derive(Debug, Clone, Copy)]
struct SubmittedPiece {
    action: DiskAction,
    offset: u64,
    len: u64,
}

/// Moves data by io_uring.
pub(super) struct UringEngine {
    ring: IoUring,
    file: Arc<File>,
    /// Makes the writes to a file in memory.
    calls: Option<CallsEngine>,
    asked: Vec<Option<SubmittedPiece>>,
    under_way: usize,
}

impl UringEngine {
    /// A ring over `file`.
    ///
    /// # Errors
    ///
    /// The host does not permit io_uring, or it is too old (before Linux 5.6).
    pub(super) fn new(file: Arc<File>, config: &RingConfig) -> io::Result<Self> {
        let RingConfig { wake, slots, workers } = *config;
        let ring = IoUring::builder()
            .setup_cqsize(u32::from(slots).max(2).next_power_of_two())
            .build(slots.min(SUBMISSIONS).into())?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ];
        if needed.iter().any(|code| !probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        ring.submitter().register_eventfd(wake)?;
        // Of the two kinds of workers, disks and files have the first. Before Linux 5.15 there are as
        // many as the kernel likes.
        let mut limits = [workers.max(1).into(), 1];
        if let Err(error) = ring.submitter().register_iowq_max_workers(&mut limits) {
            tracing::debug!(%error, "the workers of io_uring cannot be limited");
        }
        let asked = vec![None; slots.into()];
        let calls = is_in_memory(&file)?.then(|| CallsEngine::new(Arc::clone(&file)));
        Ok(Self { ring, file, calls, asked, under_way: 0 })
    }

    fn entry(&self, piece: &Piece<'_>) -> squeue::Entry {
        // Not a file registered with the ring: that would keep a killed monitor's image locked until
        // the ring, too, is gone.
        let image = Fd(self.file.as_raw_fd());
        let offset = piece.offset;
        let vectors = piece.memory.as_slice();
        // At most the limit of `IoVecs`, far below the limit of the type.
        let count = vectors.len().saturating_u32();
        // One vector costs the kernel no list to copy. A piece is far below 4 GiB.
        let one = match vectors {
            [one] => u32::try_from(one.iov_len).ok().map(|len| (one.iov_base.cast::<u8>(), len)),
            _ => None,
        };
        match (piece.action, one, fallocate_mode(piece.action)) {
            (DiskAction::Read, Some((base, len)), _) => {
                opcode::Read::new(image, base, len).offset(offset).build()
            }
            (DiskAction::Write, Some((base, len)), _) => {
                opcode::Write::new(image, base, len).offset(offset).build()
            }
            (DiskAction::Read, None, _) => {
                opcode::Readv::new(image, vectors.as_ptr(), count).offset(offset).build()
            }
            (DiskAction::Write, None, _) => {
                opcode::Writev::new(image, vectors.as_ptr(), count).offset(offset).build()
            }
            (_, _, Some(mode)) => {
                opcode::Fallocate::new(image, piece.len).offset(offset).mode(mode).build()
            }
            _ => opcode::Fsync::new(image).flags(FsyncFlags::DATASYNC).build(),
        }
    }

    /// Result of a piece from the ring's return value.
    fn outcome(&self, asked: SubmittedPiece, result: i32) -> io::Result<u64> {
        if matches!(asked.action, DiskAction::Read | DiskAction::Write) {
            return moved(result.into(), asked.len);
        }
        match moved(result.into(), 0) {
            Ok(_) => Ok(asked.len),
            Err(error) if is_unsupported(&error) => match asked.action {
                DiskAction::Discard => Ok(asked.len),
                DiskAction::Zero { .. } => write_zeroes(&self.file, asked.offset, asked.len),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }
}

impl DiskEngine for UringEngine {
    unsafe fn start(&mut self, token: u16, piece: Piece<'_>) -> Started {
        if matches!(piece.action, DiskAction::Read | DiskAction::Write) && piece.len == 0 {
            return Started::Done(Ok(0));
        }
        if piece.action == DiskAction::Write
            && let Some(calls) = &mut self.calls
        {
            // SAFETY: the caller's promise.
            return unsafe { calls.start(token, piece) };
        }
        let entry = self.entry(&piece).user_data(token.into());
        if self.ring.submission().is_full()
            && let Err(error) = self.submit()
        {
            return Started::Done(Err(error));
        }
        // SAFETY: vectors and file stay as they are until the piece has ended: the caller's
        // promise, and the ring is dropped before the file.
        match unsafe { self.ring.submission().push(&entry) } {
            Ok(()) => {
                let Piece { action, offset, len, .. } = piece;
                self.asked[usize::from(token)] = Some(SubmittedPiece { action, offset, len });
                self.under_way += 1;
                Started::UnderWay
            }
            Err(_) => Started::Done(Err(io::ErrorKind::WouldBlock.into())),
        }
    }

    fn submit(&mut self) -> io::Result<bool> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Completions must be collected first: the loop returns when they arrive.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn notify(&mut self, on: bool) {
        let completion = self.ring.completion();
        if on { completion.enable_eventfd() } else { completion.disable_eventfd() }
    }

    fn reap(&mut self) -> Option<(u16, io::Result<u64>)> {
        let entry = self.ring.completion().next()?;
        let token = u16::try_from(entry.user_data()).ok()?;
        let asked = self.asked.get_mut(usize::from(token))?.take()?;
        self.under_way -= 1;
        Some((token, self.outcome(asked, entry.result())))
    }

    fn wait(&mut self) -> io::Result<()> {
        if self.under_way == 0 || !self.ring.completion().is_empty() {
            return Ok(());
        }
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn piece_limit(&self) -> usize {
        if self.calls.is_some() { super::calls::PIECE } else { PIECE }
    }

    fn works_at_once(&self, action: DiskAction) -> bool {
        action == DiskAction::Write && self.calls.is_some()
    }
}

/// Whether `file` is one of tmpfs. A device's node is not, wherever it is.
fn is_in_memory(file: &File) -> io::Result<bool> {
    let tmpfs = rustix::fs::fstatfs(file)?.f_type == libc::TMPFS_MAGIC;
    Ok(tmpfs && file.metadata()?.is_file())
}
