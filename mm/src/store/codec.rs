// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How pages are compressed: a trait, and the two codecs that come with the store.

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

/// Why a page could not be compressed or restored.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The codec's state could not be made.
    #[error("cannot set up {codec}: {reason}")]
    Setup {
        /// The codec's name.
        codec: &'static str,
        /// What it said.
        reason: String,
    },
    /// Stored data does not give a page.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
}

/// A compression method for pages.
pub trait Codec: Send + Sync {
    /// Name for people.
    fn name(&self) -> &'static str;

    /// State for one thread at a time, with buffers of its own, for data of at most `most` bytes.
    ///
    /// # Errors
    /// [`CodecError::Setup`].
    fn worker(&self, most: usize) -> Result<Box<dyn CodecWorker>, CodecError>;
}

/// State of a codec, used by one thread at a time.
pub trait CodecWorker: Send {
    /// Compresses a page, or several in a row, into a buffer of the worker's. `None` if that does
    /// not make them smaller.
    fn compress(&mut self, pages: &[u8]) -> Option<&[u8]>;

    /// Restores what `data` was made of, into all of `pages`.
    ///
    /// # Errors
    /// [`CodecError::Damaged`].
    fn decompress(&mut self, data: &[u8], pages: &mut [u8]) -> Result<(), CodecError>;
}

/// LZ4: fast, about half the size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lz4;

struct Lz4Worker {
    table: CompressTable,
    out: Vec<u8>,
}

impl Codec for Lz4 {
    fn name(&self) -> &'static str {
        "lz4"
    }

    fn worker(&self, most: usize) -> Result<Box<dyn CodecWorker>, CodecError> {
        let out = vec![0; get_maximum_output_size(most)];
        // A small table has positions of sixteen bits.
        let table = match most < usize::from(u16::MAX) {
            true => CompressTable::small(),
            false => CompressTable::large(),
        };
        Ok(Box::new(Lz4Worker { table, out }))
    }
}

impl CodecWorker for Lz4Worker {
    fn compress(&mut self, pages: &[u8]) -> Option<&[u8]> {
        let len = compress_into_with_table(pages, &mut self.out, &mut self.table).ok()?;
        (len < pages.len()).then(|| &self.out[..len])
    }

    fn decompress(&mut self, data: &[u8], pages: &mut [u8]) -> Result<(), CodecError> {
        let len = decompress_into(data, pages);
        restored(len.map_err(|error| error.to_string()), pages.len())
    }
}

/// Zstandard: slower, smaller.
#[derive(Clone, Copy, Debug)]
pub struct Zstd {
    /// 1 is fastest; zram's default is 3.
    pub level: i32,
}

impl Default for Zstd {
    fn default() -> Self {
        Self { level: 3 }
    }
}

struct ZstdWorker {
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    out: Vec<u8>,
}

impl Codec for Zstd {
    fn name(&self) -> &'static str {
        "zstd"
    }

    fn worker(&self, most: usize) -> Result<Box<dyn CodecWorker>, CodecError> {
        let setup =
            |error: std::io::Error| CodecError::Setup { codec: "zstd", reason: error.to_string() };
        Ok(Box::new(ZstdWorker {
            compressor: zstd::bulk::Compressor::new(self.level).map_err(setup)?,
            decompressor: zstd::bulk::Decompressor::new().map_err(setup)?,
            out: vec![0; most],
        }))
    }
}

impl CodecWorker for ZstdWorker {
    fn compress(&mut self, pages: &[u8]) -> Option<&[u8]> {
        // A buffer that is a byte short: a result that does not fit is not worth keeping.
        let out = self.out.get_mut(..pages.len().checked_sub(1)?)?;
        let len = self.compressor.compress_to_buffer(pages, out).ok()?;
        Some(&self.out[..len])
    }

    fn decompress(&mut self, data: &[u8], pages: &mut [u8]) -> Result<(), CodecError> {
        let len = self.decompressor.decompress_to_buffer(data, pages);
        restored(len.map_err(|error| error.to_string()), pages.len())
    }
}

fn restored(len: Result<usize, String>, wanted: usize) -> Result<(), CodecError> {
    match len {
        Ok(len) if len == wanted => Ok(()),
        Ok(len) => Err(CodecError::Damaged(format!("{len} bytes in place of {wanted}"))),
        Err(error) => Err(CodecError::Damaged(error)),
    }
}
