// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! qcow2 images, by the imago library, which works on memory of the monitor's: data is copied.

use std::io;

use imago::FormatAccess;
use mm::units::usize_from;
use vm_memory::VolatileSlice;

use super::{DiskAction, DiskEngine, Piece, Started, is_unsupported};

/// Largest piece, and so the size of the buffer.
const PIECE: usize = 256 << 10;

/// Moves data through imago.
pub(super) struct Qcow2Engine {
    image: FormatAccess<imago::file::File>,
    buffer: Vec<u8>,
}

impl Qcow2Engine {
    pub(super) fn new(image: FormatAccess<imago::file::File>) -> Self {
        Self { image, buffer: Vec::new() }
    }

    /// Copies between the buffer and the vectors.
    ///
    /// # Safety
    ///
    /// As for [`DiskEngine::start`].
    unsafe fn copy(&mut self, piece: &Piece<'_>) {
        let mut rest = &mut self.buffer[..];
        for vector in piece.memory.as_slice() {
            let (part, tail) = rest.split_at_mut(vector.iov_len.min(rest.len()));
            rest = tail;
            // SAFETY: the vector is guest memory, mapped and writable for as long as `IoVecs`
            // lives; all accesses to it are volatile.
            let guest = unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) };
            match piece.action {
                DiskAction::Read => guest.copy_from(part),
                _ => {
                    guest.copy_to(part);
                }
            }
        }
    }

    /// # Safety
    ///
    /// As for [`DiskEngine::start`].
    unsafe fn act(&mut self, piece: &Piece<'_>) -> io::Result<u64> {
        let len = usize_from(piece.len);
        match piece.action {
            DiskAction::Read => {
                self.buffer.resize(len, 0);
                self.image.read(&mut self.buffer[..], piece.offset)?;
                // SAFETY: the caller's promise.
                unsafe { self.copy(piece) };
            }
            DiskAction::Write => {
                self.buffer.resize(len, 0);
                // SAFETY: the caller's promise.
                unsafe { self.copy(piece) };
                self.image.write(&self.buffer[..], piece.offset)?;
            }
            DiskAction::Flush => {
                self.image.flush()?;
                self.image.sync()?;
            }
            DiskAction::Discard => match self.image.discard_to_any(piece.offset, piece.len) {
                Err(error) if !is_unsupported(&error) => return Err(error),
                _ => {}
            },
            DiskAction::Zero { unmap: true } => {
                self.image.discard_to_zero(piece.offset, piece.len)?
            }
            DiskAction::Zero { unmap: false } => {
                self.image.write_zeroes(piece.offset, piece.len)?
            }
        }
        Ok(piece.len)
    }
}

impl DiskEngine for Qcow2Engine {
    unsafe fn start(&mut self, _token: u16, piece: Piece<'_>) -> Started {
        // SAFETY: the caller's promise.
        Started::Done(unsafe { self.act(&piece) })
    }

    fn piece_limit(&self) -> usize {
        PIECE
    }
}
