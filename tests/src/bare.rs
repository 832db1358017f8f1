// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host's kernel and CPU take for a piece of work without a guest: limits for
//! figures.

use std::time::{Duration, Instant};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::host::PAGE;
use crate::{Error, Result};

const BLOCK: usize = 2 << 20;
const SMALL: usize = PAGE as usize;

/// Anonymous memory, aligned to a block, of this process alone.
struct Memory {
    start: *mut std::ffi::c_void,
    len: usize,
    first: *mut u8,
    blocks: usize,
}

impl Memory {
    /// Maps `blocks` blocks; none is present.
    fn map(blocks: usize) -> Result<Self> {
        let len = (blocks + 1) * BLOCK;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses where; nothing else knows of the memory.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }
            .map_err(|error| Error::io("mapping memory")(error.into()))?;
        let first = start.map_addr(|addr| addr.next_multiple_of(BLOCK)).cast();
        Ok(Self { start, len, first, blocks })
    }

    fn advise(&self, advice: Advice) -> Result<()> {
        // SAFETY: of the mapping; there is no reference to any of it, and its contents do not matter.
        unsafe { madvise(self.first.cast(), self.blocks * BLOCK, advice) }
            .map_err(|error| Error::io("advising on memory")(error.into()))
    }

    fn collapse(&self) -> Result<()> {
        // SAFETY: of the mapping; there is no reference to any of it, and contents are kept.
        match unsafe { libc::madvise(self.first.cast(), self.blocks * BLOCK, libc::MADV_COLLAPSE) }
        {
            0 => Ok(()),
            _ => Err(Error::io("collapsing memory")(std::io::Error::last_os_error())),
        }
    }

    fn page(&self, index: usize) -> *mut u8 {
        assert!(index < self.blocks * (BLOCK / SMALL), "a page of the mapping");
        self.first.wrapping_add(index * SMALL)
    }

    fn fill(&self, page: usize, byte: u8) {
        // SAFETY: a page of the mapping, to which there is no reference.
        unsafe { self.page(page).write_bytes(byte, SMALL) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, and no longer used.
        let unmapped = unsafe { munmap(self.start, self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// How long the copies of `pages` pages take, each to another place that is present.
pub fn copies(pages: u64) -> Result<Duration> {
    let pages = usize::try_from(pages).unwrap_or(usize::MAX);
    let half = pages.clamp(1, 64 << 10);
    let memory = Memory::map((2 * half).div_ceil(BLOCK / SMALL))?;
    memory.advise(Advice::LinuxNoHugepage)?;
    (0..2 * half).for_each(|page| memory.fill(page, 1));
    let started = Instant::now();
    for page in 0..pages {
        let (from, to) = (memory.page(page % half), memory.page(half + page % half));
        // SAFETY: two different pages of the mapping, to which there is no reference.
        unsafe { to.copy_from_nonoverlapping(from, SMALL) };
    }
    Ok(started.elapsed())
}

/// How long the host takes to give back `blocks` huge pages of one process in one call: the limit
/// of the process that gives memory back.
pub fn discards(blocks: usize) -> Result<Duration> {
    let memory = Memory::map(blocks)?;
    memory.advise(Advice::LinuxHugepage)?;
    (0..blocks).for_each(|block| memory.fill(block * (BLOCK / SMALL), 1));
    let started = Instant::now();
    memory.advise(Advice::LinuxDontNeed)?;
    Ok(started.elapsed())
}

/// How long the kernel takes to make `blocks` blocks huge of which every other page is present.
pub fn collapses(blocks: u64) -> Result<Duration> {
    let memory = Memory::map(usize::try_from(blocks).unwrap_or(usize::MAX).max(1))?;
    memory.advise(Advice::LinuxNoHugepage)?;
    (0..memory.blocks * (BLOCK / SMALL)).step_by(2).for_each(|page| memory.fill(page, 1));
    memory.advise(Advice::LinuxHugepage)?;
    let started = Instant::now();
    memory.collapse()?;
    Ok(started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_copied_and_collapsed() {
        assert!(copies(100).unwrap() > Duration::ZERO);
        // A kernel without huge pages refuses.
        if std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            assert!(collapses(2).unwrap() > Duration::ZERO);
        }
    }
}
