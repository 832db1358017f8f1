// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ways to move data between an image and guest memory, one piece of a request at a time.
//!
//! - `uring.rs`: io_uring: any number of pieces in flight
//! - `calls.rs`: system calls: each piece is done when `start` returns
//! - `qcow2.rs`: qcow2 images, by imago; as with system calls
//! - `open.rs`: which of them an image gets

mod calls;
mod open;
mod qcow2;
mod uring;

use std::io;
use std::os::fd::RawFd;

use crate::virtio::IoVecs;
pub(super) use open::open;

/// Operation of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskAction {
    /// From the image into the vectors.
    Read,
    /// From the vectors into the image.
    Write,
    /// All that was written is made durable.
    Flush,
    /// The contents are no longer needed. An image that cannot deallocate keeps them.
    Discard,
    /// The contents become zero; with `unmap` they may be deallocated.
    Zero { unmap: bool },
}

/// One piece of a request: `len` bytes of the image from `offset` on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) action: DiskAction,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) memory: &'a IoVecs,
}

/// How far a piece is after `start`.
#[derive(Debug)]
pub(super) enum Started {
    /// Done: bytes moved, at least one unless the piece is empty; or the error.
    Done(io::Result<u64>),
    /// `reap` will report its completion.
    UnderWay,
}

/// Moves data between one image and memory.
pub(super) trait DiskEngine: Send {
    /// Starts a piece, which `token` names until its end.
    ///
    /// # Safety
    ///
    /// Until the piece has ended, its vectors are neither changed nor dropped, and no piece of the
    /// same token is started.
    unsafe fn start(&mut self, token: u16, piece: Piece<'_>) -> Started;

    /// Submits started pieces to the host; false if the host accepted only some of them.
    ///
    /// # Errors
    ///
    /// The engine cannot go on.
    fn submit(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    /// Whether completed pieces write to the event. Disabled while the device polls anyway.
    fn notify(&mut self, _on: bool) {}

    /// The next piece that has ended, with the bytes moved.
    fn reap(&mut self) -> Option<(u16, io::Result<u64>)> {
        None
    }

    /// Waits until a piece completes, if any is in flight.
    ///
    /// # Errors
    ///
    /// The host no longer reports completions.
    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Largest piece in bytes.
    fn piece_limit(&self) -> usize;

    /// Whether `start` itself does the work of a piece, so that its time counts.
    fn works_at_once(&self, _action: DiskAction) -> bool {
        true
    }
}

/// What a ring is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingConfig {
    /// The event that completions write to.
    pub(super) wake: RawFd,
    /// Maximum number of pieces in flight.
    pub(super) slots: u16,
    /// Most threads of the host's that wait for the disk.
    pub(super) workers: u16,
}

/// fallocate(2) modes for an action, none for those that are no fallocate.
fn fallocate_mode(action: DiskAction) -> Option<i32> {
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    match action {
        DiskAction::Discard | DiskAction::Zero { unmap: true } => {
            Some(libc::FALLOC_FL_PUNCH_HOLE | keep)
        }
        DiskAction::Zero { unmap: false } => Some(libc::FALLOC_FL_ZERO_RANGE | keep),
        DiskAction::Read | DiskAction::Write | DiskAction::Flush => None,
    }
}

/// Whether an error says that a file system or device has no such operation.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
        || error.kind() == io::ErrorKind::Unsupported
}

/// Converts the return value of a read or write call. Zero bytes mean that the image is shorter
/// than the disk: its file was truncated.
fn moved(result: i64, asked: u64) -> io::Result<u64> {
    match u64::try_from(result) {
        Ok(0) if asked > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(bytes) => Ok(bytes),
        Err(_) => {
            let code = i32::try_from(-result).unwrap_or(libc::EIO);
            Err(io::Error::from_raw_os_error(code))
        }
    }
}
