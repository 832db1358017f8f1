// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers of guest memory.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::Card;
use super::uapi::{
    BLOB_FLAG_MAPPABLE, BLOB_MEM_GUEST, CREATE_DUMB, CreateDumb, GEM_CLOSE, GemClose, MAP_DUMB,
    MapDumb, PRIME_FD_TO_HANDLE, PRIME_HANDLE_TO_FD, PrimeHandle, VIRTGPU_CREATE_BLOB, VIRTGPU_MAP,
    VirtgpuCreateBlob, VirtgpuMap,
};
use crate::region::{PAGE, fill_page, page_is_intact};

/// How a buffer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By the request that every driver has.
    Dumb,
    /// As a blob resource of guest memory.
    Blob,
}

/// Words in a page.
const WORDS: usize = PAGE / size_of::<u64>();
/// Pixels in a page.
const PIXELS: u32 = (PAGE / 4) as u32;

/// A buffer; closed when dropped.
pub(crate) struct Buffer {
    card: Card,
    kind: Kind,
    handle: u32,
    pages: usize,
    pitch: u32,
}

impl Buffer {
    /// A buffer with this many pages that is not displayed.
    pub(crate) fn new(card: &Card, kind: Kind, pages: usize) -> io::Result<Self> {
        let height = u32::try_from(pages).map_err(|_| io::ErrorKind::InvalidInput)?;
        match kind {
            Kind::Dumb => Self::dumb(card, PIXELS, height),
            Kind::Blob => Self::blob(card, PIXELS, height),
        }
    }

    /// A buffer of pixels of four bytes.
    pub(crate) fn dumb(card: &Card, width: u32, height: u32) -> io::Result<Self> {
        let mut create = CreateDumb { width, height, bpp: 32, ..CreateDumb::default() };
        // SAFETY: the struct is that request's and has no addresses in it.
        unsafe { card.request(CREATE_DUMB, &mut create) }?;
        Ok(Self {
            card: card.clone(),
            kind: Kind::Dumb,
            handle: create.handle,
            pages: (create.size as usize).div_ceil(PAGE),
            pitch: create.pitch,
        })
    }

    fn blob(card: &Card, width: u32, height: u32) -> io::Result<Self> {
        let pitch = width * 4;
        let pages = (pitch as usize * height as usize).div_ceil(PAGE);
        let mut create = VirtgpuCreateBlob {
            blob_mem: BLOB_MEM_GUEST,
            blob_flags: BLOB_FLAG_MAPPABLE,
            size: (pages * PAGE) as u64,
            ..VirtgpuCreateBlob::default()
        };
        // SAFETY: the struct is that request's; the one address in it is null, of no bytes.
        unsafe { card.request(VIRTGPU_CREATE_BLOB, &mut create) }?;
        Ok(Self { card: card.clone(), kind: Kind::Blob, handle: create.bo_handle, pages, pitch })
    }

    /// Pages in the buffer.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Exports the buffer as a dma-buf.
    pub(crate) fn export(&self) -> io::Result<OwnedFd> {
        let mut prime = PrimeHandle { handle: self.handle, flags: 0, fd: -1 };
        // SAFETY: the struct is that request's and has no addresses in it.
        unsafe { self.card.request(PRIME_HANDLE_TO_FD, &mut prime) }?;
        // SAFETY: the kernel has just made this descriptor for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(prime.fd) })
    }

    /// Opens an exported buffer of this many pages as another client.
    pub(crate) fn import(card: &Card, dma_buf: &OwnedFd, pages: usize) -> io::Result<Self> {
        let mut prime = PrimeHandle { handle: 0, flags: 0, fd: dma_buf.as_raw_fd() };
        // SAFETY: the struct is that request's and has no addresses in it.
        unsafe { card.request(PRIME_FD_TO_HANDLE, &mut prime) }?;
        // Buffers of both kinds are mapped by the request that blobs need.
        let kind = Kind::Blob;
        Ok(Self { card: card.clone(), kind, handle: prime.handle, pages, pitch: 0 })
    }

    pub(super) fn handle(&self) -> u32 {
        self.handle
    }

    pub(super) fn pitch(&self) -> u32 {
        self.pitch
    }

    /// Maps the whole buffer.
    pub(crate) fn map(&self) -> io::Result<Mapping> {
        let offset = match self.kind {
            Kind::Dumb => {
                let mut map = MapDumb { handle: self.handle, ..MapDumb::default() };
                // SAFETY: the struct is that request's and has no addresses in it.
                unsafe { self.card.request(MAP_DUMB, &mut map) }?;
                map.offset
            }
            Kind::Blob => {
                let mut map = VirtgpuMap { handle: self.handle, ..VirtgpuMap::default() };
                // SAFETY: the struct is that request's and has no addresses in it.
                unsafe { self.card.request(VIRTGPU_MAP, &mut map) }?;
                map.offset
            }
        };
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                self.pages * PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                self.card.file(),
                offset,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, pages: self.pages })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut close = GemClose { handle: self.handle, pad: 0 };
        // SAFETY: the struct is that request's and has no addresses in it. A mapping that is
        // left keeps the memory.
        let _ = unsafe { self.card.request(GEM_CLOSE, &mut close) };
    }
}

/// A buffer's memory. It outlives the buffer if need be.
pub(crate) struct Mapping {
    start: NonNull<u64>,
    pages: usize,
}

// SAFETY: the mapping belongs to this value alone; access goes through `&self` and `&mut self`.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Pages in the mapping.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Writes the pattern of `seed` to one page.
    pub(crate) fn fill(&mut self, seed: u64, index: usize) {
        fill_page(self.page_mut(index), seed, index);
    }

    /// Whether a page still has the pattern of `seed`.
    pub(crate) fn is_intact(&self, seed: u64, index: usize) -> bool {
        page_is_intact(self.page(index), seed, index)
    }

    /// One page's words.
    pub(crate) fn page(&self, index: usize) -> &[u64] {
        // SAFETY: the page is readable for as long as `self` lives, and any bytes are valid words.
        // The device only reads the buffers that we make.
        unsafe { std::slice::from_raw_parts(self.first_word(index), WORDS) }
    }

    fn page_mut(&mut self, index: usize) -> &mut [u64] {
        // SAFETY: as above, and `&mut self` excludes all other users in this program.
        unsafe { std::slice::from_raw_parts_mut(self.first_word(index), WORDS) }
    }

    fn first_word(&self, index: usize) -> *mut u64 {
        assert!(index < self.pages, "page {index} of {}", self.pages);
        // SAFETY: the mapping has `self.pages` pages, and this one is among them.
        unsafe { self.start.as_ptr().add(index * WORDS) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, made with this length, and there is no slice of it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.pages * PAGE) };
    }
}
