// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Structures and lists out of the bytes of a command.

use std::io::Read;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::wire::{CreateBlob, IdAnd, MemEntry};
use super::{Command, DecodeError, Entries, MAX_MIGRATE_ENTRIES};

/// What of a command's readable bytes is not decoded yet.
pub struct Body<R> {
    reader: R,
    taken: u64,
    left: u64,
}

impl<R: Read> Body<R> {
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

    pub(super) fn attach(&mut self, max_entries: u32) -> Result<Command, DecodeError> {
        let IdAnd { id, other: count } = self.take()?;
        Ok(Command::AttachBacking(id.get(), self.entries(count.get(), max_entries)?))
    }

    pub(super) fn blob(&mut self, max_entries: u32) -> Result<Command, DecodeError> {
        let blob: CreateBlob = self.take()?;
        Ok(Command::CreateBlob(blob, self.entries(blob.nr_entries.get(), max_entries)?))
    }

    fn entries(&self, count: u32, max: u32) -> Result<Entries, DecodeError> {
        self.check_count::<MemEntry>(count)?;
        if count > max {
            return Err(DecodeError::TooManyEntries);
        }
        Ok(Entries { at: self.taken, count })
    }

    pub(super) fn migrate(&mut self) -> Result<Command, DecodeError> {
        let IdAnd { id, other: count } = self.take()?;
        Ok(Command::MigrateBacking(id.get(), self.moves(count.get())?))
    }

    pub(super) fn migrate_pages(&mut self) -> Result<Command, DecodeError> {
        let IdAnd { id: count, other: _ } = self.take()?;
        Ok(Command::MigratePages(self.moves(count.get())?))
    }

    fn moves<E: FromBytes + IntoBytes + Clone>(
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

    /// The guest has sent `count` entries: only then is memory taken for any.
    fn check_count<E>(&self, count: u32) -> Result<(), DecodeError> {
        let sent = self.left / size_of::<E>() as u64;
        if u64::from(count) > sent { Err(DecodeError::Malformed) } else { Ok(()) }
    }
}
