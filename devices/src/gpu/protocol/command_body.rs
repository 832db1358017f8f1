// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Structures and lists out of the bytes of a command.

use std::io::Read;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::MAX_MIGRATE_ENTRIES;
use super::structures::{IdAnd, MemEntry};

/// A list of [`MemEntry`](super::MemEntry) that the guest has sent and the device has not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entries {
    /// Offset of the first in the readable bytes of the buffer.
    pub at: u64,
    /// How many there are; so many were sent.
    pub count: u32,
}

/// Why bytes are no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The command is shorter than its structure, or than its number of entries.
    #[error("the command is shorter than its header requires")]
    Malformed,
    /// More entries than a resource may have.
    #[error("more backing entries than the limit for one resource")]
    TooManyEntries,
    /// More pages than one command may move.
    #[error("more pages than the limit for one command")]
    TooManyMoves,
}

/// The remaining undecoded bytes of a command.
pub struct CommandBody<R> {
    reader: R,
    taken: u64,
    left: u64,
}

impl<R: Read> CommandBody<R> {
    /// The `left` bytes that `reader` has.
    pub fn new(reader: R, left: u64) -> Self {
        Self { reader, taken: 0, left }
    }

    /// The next structure.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Malformed`] when the bytes end before it.
    pub fn take<T: FromBytes + FromZeros + IntoBytes>(&mut self) -> Result<T, DecodeError> {
        let mut value = T::new_zeroed();
        self.fill(value.as_mut_bytes())?;
        Ok(value)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DecodeError> {
        let len = bytes.len() as u64;
        self.left = self.left.checked_sub(len).ok_or(DecodeError::Malformed)?;
        self.taken += len;
        self.reader.read_exact(bytes).map_err(|_| DecodeError::Malformed)
    }

    /// A resource or scanout number, and the padding behind it.
    pub(super) fn id(&mut self) -> Result<u32, DecodeError> {
        self.take::<IdAnd>().map(|pair| pair.id.get())
    }

    /// A list of `count` entries, at most `max`.
    pub(super) fn entries(&self, count: u32, max: u32) -> Result<Entries, DecodeError> {
        self.check_count::<MemEntry>(count)?;
        if count > max {
            return Err(DecodeError::TooManyEntries);
        }
        Ok(Entries { at: self.taken, count })
    }

    /// `count` structures, one for each page that is to move.
    pub(super) fn moves<E: FromBytes + IntoBytes + Clone>(
        &mut self,
        count: u32,
    ) -> Result<Vec<E>, DecodeError> {
        self.check_count::<E>(count)?;
        if count > MAX_MIGRATE_ENTRIES {
            return Err(DecodeError::TooManyMoves);
        }
        let mut moves = vec![E::new_zeroed(); count as usize];
        self.fill(moves.as_mut_slice().as_mut_bytes())?;
        Ok(moves)
    }

    /// Checks that the guest has sent `count` entries before memory is allocated for them.
    fn check_count<E>(&self, count: u32) -> Result<(), DecodeError> {
        let sent = self.left / size_of::<E>() as u64;
        if u64::from(count) > sent { Err(DecodeError::Malformed) } else { Ok(()) }
    }
}
