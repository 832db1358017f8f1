// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Residency of this process's memory.
//!
//! PAGEMAP_SCAN (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst) walks page tables and returns
//! runs; on older kernels one 8-byte entry per page is read from /proc/self/pagemap, which does not
//! show whether a page is part of a huge page.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::units::{HostRange, PAGE_BYTES};

/// `_IOWR('f', 16, struct pm_scan_arg)`, include/uapi/linux/fs.h.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;
/// Bit of an entry of /proc/self/pagemap: the page is in RAM.
const ENTRY_PRESENT: u64 = 1 << 63;
/// Runs asked for in one call.
const RUNS_PER_CALL: usize = 128;
/// Entries read at once in the fallback.
const ENTRIES_PER_READ: usize = 512;

/// `struct pm_scan_arg`, include/uapi/linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<PmScanArg>() == 96);

/// `struct page_region`, include/uapi/linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// How resident pages are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappedAs {
    /// Page by page.
    Small,
    /// By a PMD or PUD entry: as a huge page.
    Huge,
    /// The kernel is too old to report it.
    Unknown,
}

/// This process's page map. Reading it needs no privilege.
#[derive(Debug)]
pub struct Pagemap {
    /// `None` where the process has no /proc, as in a jail: then mincore(2) is asked.
    file: Option<File>,
    /// Cleared once the kernel turns out to lack PAGEMAP_SCAN.
    can_scan: AtomicBool,
}

impl Pagemap {
    /// Opens /proc/self/pagemap. Without /proc, mincore(2) takes its place: it does not distinguish
    /// huge pages, and counts the shared zero page.
    ///
    /// # Errors
    /// Those of open(2), other than ENOENT.
    pub fn open() -> io::Result<Self> {
        let file = match File::open("/proc/self/pagemap") {
            Ok(file) => Some(file),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let can_scan = AtomicBool::new(file.is_some());
        Ok(Self { file, can_scan })
    }

    /// Whether the kernel distinguishes huge pages; known after the first walk.
    pub fn can_scan(&self) -> bool {
        self.can_scan.load(Ordering::Relaxed)
    }

    /// Reads page by page from now on, as on a kernel without PAGEMAP_SCAN.
    #[doc(hidden)]
    pub fn disable_scan(&self) {
        self.can_scan.store(false, Ordering::Relaxed);
    }

    /// Calls `found` for each run of resident pages in `range`, in ascending order.
    ///
    /// The shared zero page counts as absent: it costs nothing. Pages may change during the walk.
    ///
    /// # Errors
    /// Those of the PAGEMAP_SCAN ioctl or of pread(2).
    pub fn walk(
        &self,
        range: HostRange,
        mut found: impl FnMut(HostRange, MappedAs),
    ) -> io::Result<()> {
        let Some(file) = &self.file else { return ask_mincore(range, &mut found) };
        if self.can_scan() {
            match self.scan(file, range, &mut found) {
                // The first call of a walk reports nothing when it fails in this way.
                Err(e) if is_unsupported(&e) => self.can_scan.store(false, Ordering::Relaxed),
                result => return result,
            }
        }
        self.read(file, range, &mut found)
    }

    fn scan(
        &self,
        file: &File,
        range: HostRange,
        found: &mut impl FnMut(HostRange, MappedAs),
    ) -> io::Result<()> {
        let mut runs = [PageRegion::default(); RUNS_PER_CALL];
        let end = range.end() as u64;
        let mut start = range.addr() as u64;
        while start < end {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                start,
                end,
                vec: runs.as_mut_ptr() as u64,
                vec_len: RUNS_PER_CALL as u64,
                category_inverted: PAGE_IS_PFNZERO,
                category_mask: PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
                return_mask: PAGE_IS_PRESENT | PAGE_IS_HUGE,
                ..PmScanArg::default()
            };
            // SAFETY: `arg` is the structure that the call expects, and `vec` names `vec_len`
            // writable regions that live until it returns.
            let filled = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            let filled = usize::try_from(filled).map_err(|_| io::Error::last_os_error())?;
            for run in &runs[..filled.min(RUNS_PER_CALL)] {
                let mapped = if run.categories & PAGE_IS_HUGE != 0 {
                    MappedAs::Huge
                } else {
                    MappedAs::Small
                };
                if let Some(run) =
                    HostRange::new(run.start as usize, (run.end - run.start) as usize)
                {
                    found(run, mapped);
                }
            }
            if arg.walk_end <= start {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            start = arg.walk_end;
        }
        Ok(())
    }

    fn read(
        &self,
        file: &File,
        range: HostRange,
        found: &mut impl FnMut(HostRange, MappedAs),
    ) -> io::Result<()> {
        let page = PAGE_BYTES;
        let mut entries = [0u8; ENTRIES_PER_READ * 8];
        let mut run: Option<(usize, usize)> = None;
        let mut addr = range.addr();
        while addr < range.end() {
            let count = ((range.end() - addr) / page).min(ENTRIES_PER_READ);
            file.read_exact_at(&mut entries[..count * 8], (addr / page * 8) as u64)?;
            for entry in entries[..count * 8].chunks_exact(8) {
                let entry = u64::from_ne_bytes(entry.try_into().expect("chunks of 8"));
                run = match (run, entry & ENTRY_PRESENT != 0) {
                    (None, true) => Some((addr, addr + page)),
                    (Some((start, _)), true) => Some((start, addr + page)),
                    (Some((start, end)), false) => {
                        report(start, end, found);
                        None
                    }
                    (None, false) => None,
                };
                addr += page;
            }
        }
        if let Some((start, end)) = run {
            report(start, end, found);
        }
        Ok(())
    }
}

fn report(start: usize, end: usize, found: &mut impl FnMut(HostRange, MappedAs)) {
    if let Some(run) = HostRange::new(start, end - start) {
        found(run, MappedAs::Unknown);
    }
}

/// Calls `found` for each run of resident pages, by mincore(2).
fn ask_mincore(range: HostRange, found: &mut impl FnMut(HostRange, MappedAs)) -> io::Result<()> {
    const PAGES_PER_CALL: usize = 1024;
    let mut resident = [0u8; PAGES_PER_CALL];
    let mut addr = range.addr();
    let mut run = None;
    while addr < range.end() {
        let count = ((range.end() - addr) / PAGE_BYTES).min(PAGES_PER_CALL);
        let (start, len) = (std::ptr::without_provenance_mut(addr), count * PAGE_BYTES);
        // SAFETY: the call reads no memory at `start`, and writes one byte for each of the `count`
        // pages, for which `resident` has room.
        if unsafe { libc::mincore(start, len, resident.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for page in &resident[..count] {
            run = match (run, page & 1 != 0) {
                (None, true) => Some((addr, addr + PAGE_BYTES)),
                (Some((start, _)), true) => Some((start, addr + PAGE_BYTES)),
                (Some((start, end)), false) => {
                    report(start, end, found);
                    None
                }
                (None, false) => None,
            };
            addr += PAGE_BYTES;
        }
    }
    if let Some((start, end)) = run {
        report(start, end, found);
    }
    Ok(())
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::ENOSYS | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mapping::{Mapping, MappingSource};
    use crate::units::{BLOCK_BYTES, PAGE_BYTES};

    fn resident(pagemap: &Pagemap, range: HostRange) -> Vec<(usize, usize)> {
        let mut runs = Vec::new();
        let page = PAGE_BYTES;
        let base = range.addr();
        pagemap
            .walk(range, |r, _| runs.push(((r.addr() - base) / page, (r.end() - base) / page)))
            .unwrap();
        runs
    }

    #[test]
    fn both_ways_see_what_was_touched() {
        let page = PAGE_BYTES;
        let map = Mapping::new(MappingSource::Anonymous, 2 * BLOCK_BYTES, page).unwrap();
        map.set_huge(map.range(), false).unwrap();
        let all = map.range();
        for i in [3, 4, 5, 700] {
            map.populate(all.slice(i * page, page).unwrap()).unwrap();
        }
        let pagemap = Pagemap::open().unwrap();
        let expected = [(3, 6), (700, 701)];
        assert_eq!(resident(&pagemap, all), expected);
        pagemap.disable_scan();
        assert_eq!(resident(&pagemap, all), expected);
        assert_eq!(resident(&pagemap, all.slice(4 * page, page).unwrap()), [(0, 1)]);
        let jailed = Pagemap { file: None, can_scan: AtomicBool::new(false) };
        assert_eq!(resident(&jailed, all), expected, "by mincore");
    }

    #[test]
    fn more_runs_than_one_call_returns() {
        let page = PAGE_BYTES;
        let pages = 3 * RUNS_PER_CALL;
        let map = Mapping::new(MappingSource::Anonymous, pages * page, page).unwrap();
        map.set_huge(map.range(), false).unwrap();
        for i in (0..pages).step_by(2) {
            map.populate(map.range().slice(i * page, page).unwrap()).unwrap();
        }
        let pagemap = Pagemap::open().unwrap();
        assert_eq!(resident(&pagemap, map.range()).len(), pages / 2);
        pagemap.disable_scan();
        assert_eq!(resident(&pagemap, map.range()).len(), pages / 2);
    }
}
