// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page sources: where the contents of absent pages come from.

use std::error::Error;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::store::{Key, Page, Store, StoreError};
use crate::units::{PAGE_SIZE, SaturatingInto};

/// Contents of a page in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Only zeroes: nothing was written.
    Zero,
    /// The page was written.
    Written,
}

/// Why a source could not read a page. The page's contents are lost, unless the caller has another
/// copy.
#[derive(Debug, thiserror::Error)]
#[error("cannot read page {page} of guest memory from the {from}: {source}")]
pub struct SourceError {
    /// The page, counted from the beginning of paged memory.
    pub page: u64,
    /// Name of the source.
    pub from: &'static str,
    /// What it said.
    pub source: Box<dyn Error + Send + Sync>,
}

/// A source of contents of absent pages.
///
/// Pages are counted from the beginning of paged memory: page 512 is the first of the second block.
/// A source never touches guest memory itself, may be slow, and is asked by several threads at once.
/// It gives the same contents each time until [`forget`](Self::forget) is called.
pub trait PageSource: Send + Sync {
    /// Reads a page into `into`, or leaves `into` as it is and returns [`Content::Zero`].
    ///
    /// # Errors
    /// [`SourceError`]; `into` may hold anything then.
    fn read(&self, page: u64, into: &mut Page) -> Result<Content, SourceError>;

    /// Reads as many pages as `into` has, which is all zeroes on entry, from `first` on.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_run(&self, first: u64, into: &mut [Page]) -> Result<(), SourceError> {
        for (page, into) in (first..).zip(into) {
            self.read(page, into)?;
        }
        Ok(())
    }

    /// The contents of `pages` are in memory or no longer needed: a source that can drop them reads
    /// them as zero from now on.
    fn forget(&self, pages: Range<u64>) {
        let _ = pages;
    }
}

/// Zeroes, as memory that was never written has.
#[derive(Clone, Copy, Debug, Default)]
pub struct ZeroSource;

impl PageSource for ZeroSource {
    fn read(&self, _page: u64, _into: &mut Page) -> Result<Content, SourceError> {
        Ok(Content::Zero)
    }
}

/// A store of compressed pages. Pages that it does not have are zero.
pub struct StoreSource(Arc<Store>);

impl StoreSource {
    /// Over `store`, whose keys are page numbers.
    pub fn new(store: Arc<Store>) -> Self {
        Self(store)
    }
}

/// The key of a page. A page beyond what a key can name has the key that no store has: the last.
pub(super) fn key(page: u64) -> Key {
    Key(page.saturating_u32())
}

impl PageSource for StoreSource {
    fn read(&self, page: u64, into: &mut Page) -> Result<Content, SourceError> {
        match self.0.get(key(page), into) {
            Ok(()) => Ok(Content::Written),
            Err(StoreError::Absent(_)) => Ok(Content::Zero),
            Err(error) => Err(SourceError { page, from: "store", source: error.into() }),
        }
    }

    fn forget(&self, pages: Range<u64>) {
        for page in pages {
            // The only error is a key out of range, under which nothing is kept.
            let _ = self.0.remove(key(page));
        }
    }
}

/// A file that has all of paged memory in one piece, as a snapshot does.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    /// Where page 0 is in it.
    offset: u64,
}

impl FileSource {
    /// Over `file`, in which paged memory begins at byte `offset`.
    pub fn new(file: File, offset: u64) -> Self {
        Self { file, offset }
    }

    fn read_at(&self, page: u64, into: &mut [u8]) -> Result<(), SourceError> {
        let at = page.checked_mul(PAGE_SIZE).and_then(|at| at.checked_add(self.offset));
        let read = match at {
            Some(at) => self.file.read_exact_at(into, at),
            None => Err(std::io::ErrorKind::InvalidInput.into()),
        };
        read.map_err(|error| SourceError { page, from: "file", source: error.into() })
    }
}

impl PageSource for FileSource {
    fn read(&self, page: u64, into: &mut Page) -> Result<Content, SourceError> {
        self.read_at(page, into)?;
        Ok(Content::Written)
    }

    fn read_run(&self, first: u64, into: &mut [Page]) -> Result<(), SourceError> {
        self.read_at(first, into.as_flattened_mut())
    }
}
