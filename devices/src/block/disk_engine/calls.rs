// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A raw image by system calls that wait.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mm::units::usize_from;

use super::{DiskAction, DiskEngine, Piece, Started, fallocate_mode, is_unsupported, moved};

/// Largest piece: what a slow disk handles in a few milliseconds.
pub(super) const PIECE: usize = 512 << 10;
/// Zeroes to write if the host has no better method.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Moves data by preadv(2) and pwritev(2).
pub(super) struct CallsEngine {
    file: Arc<File>,
}

impl CallsEngine {
    pub(super) fn new(file: Arc<File>) -> Self {
        Self { file }
    }

    /// # Safety
    ///
    /// As for [`DiskEngine::start`].
    unsafe fn transfer(&self, piece: &Piece<'_>) -> io::Result<u64> {
        let vectors = piece.memory.as_slice();
        let count = i32::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let offset = i64::try_from(piece.offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let fd = self.file.as_raw_fd();
        let result = match (piece.action, vectors) {
            // One vector costs the kernel no list to copy.
            // SAFETY: the vector is guest memory, mapped and writable for as long as `IoVecs` lives,
            // to which Rust has no reference.
            (DiskAction::Read, [one]) => unsafe {
                libc::pread(fd, one.iov_base, one.iov_len, offset)
            },
            // SAFETY: as above; only read here.
            (_, [one]) => unsafe { libc::pwrite(fd, one.iov_base, one.iov_len, offset) },
            // SAFETY: as above.
            (DiskAction::Read, _) => unsafe { libc::preadv(fd, vectors.as_ptr(), count, offset) },
            // SAFETY: as above; only read here.
            (_, _) => unsafe { libc::pwritev(fd, vectors.as_ptr(), count, offset) },
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        moved(result as i64, piece.len)
    }

    fn fallocate(&self, mode: i32, piece: &Piece<'_>) -> io::Result<u64> {
        let offset = i64::try_from(piece.offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let len = i64::try_from(piece.len).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: no memory is involved.
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } {
            0 => Ok(piece.len),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn act(&self, piece: &Piece<'_>) -> io::Result<u64> {
        let Some(mode) = fallocate_mode(piece.action) else {
            self.file.sync_data()?;
            return Ok(piece.len);
        };
        match self.fallocate(mode, piece) {
            Err(error) if is_unsupported(&error) => match piece.action {
                DiskAction::Discard => Ok(piece.len),
                _ => write_zeroes(&self.file, piece.offset, piece.len),
            },
            result => result,
        }
    }
}

impl DiskEngine for CallsEngine {
    unsafe fn start(&mut self, _token: u16, piece: Piece<'_>) -> Started {
        loop {
            let result = match piece.action {
                DiskAction::Read | DiskAction::Write if piece.len == 0 => Ok(0),
                // SAFETY: the caller's promise.
                DiskAction::Read | DiskAction::Write => unsafe { self.transfer(&piece) },
                _ => self.act(&piece),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Started::Done(result),
            }
        }
    }

    fn piece_limit(&self) -> usize {
        PIECE
    }
}

/// Writes zeroes over a part of the range; returns how large it was.
pub(super) fn write_zeroes(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    let mut done = 0;
    while done < len.min(PIECE as u64) {
        let left = usize_from(len - done).min(ZEROES.len());
        done += file.write_at(&ZEROES[..left], offset + done)? as u64;
    }
    Ok(done)
}
