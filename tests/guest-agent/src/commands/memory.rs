// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Anonymous memory with a pattern, by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::time::Instant;

use super::{coin, reason};
use crate::console::Answer;
use crate::region::{PAGE, Region};

/// Bits of a pagemap entry: the page's frame, and whether it is there
/// (Documentation/admin-guide/mm/pagemap.rst).
const FRAME: u64 = (1 << 55) - 1;
const PRESENT: u64 = 1 << 63;

/// The regions that are filled.
#[derive(Default)]
pub(crate) struct Regions(BTreeMap<String, Region>);

impl Regions {
    /// `fill NAME SIZE [huge]`: `pages=`.
    pub(crate) fn fill(&mut self, name: &str, bytes: usize, options: &[&str]) -> Answer {
        let huge = match options {
            [] => false,
            ["huge"] => true,
            other => return Err(format!("no such option: {}", other.join(" "))),
        };
        if self.0.contains_key(name) {
            return Err(format!("{name} is filled already"));
        }
        let seed = self.0.len() as u64 + 1;
        let mut region = Region::map(bytes, seed, huge).map_err(|e| reason("mapping")(&e))?;
        region.fill();
        let pages = region.pages();
        self.0.insert(name.to_owned(), region);
        Ok(vec![format!("pages={pages}")])
    }

    /// `verify NAME`: `pages=`, `damaged=`.
    pub(crate) fn verify(&self, name: &str) -> Answer {
        let region = self.0.get(name).ok_or_else(|| format!("{name} is not filled"))?;
        Ok(vec![format!("pages={}", region.pages()), format!("damaged={}", region.damaged())])
    }

    /// `punch NAME SEED`: gives about half of the pages back; `dropped=`.
    pub(crate) fn punch(&mut self, name: &str, seed: usize) -> Answer {
        let region = self.0.get_mut(name).ok_or_else(|| format!("{name} is not filled"))?;
        let dropped = region.punch(coin(seed)).map_err(|e| reason("madvise")(&e))?;
        Ok(vec![format!("dropped={dropped}")])
    }

    /// `where NAME PAGE`: the guest-physical `address=` of a page.
    pub(crate) fn find(&self, name: &str, page: usize) -> Answer {
        self.with_page(name, page, |address| {
            let address = physical_address(address).map_err(|e| reason("pagemap")(&e))?;
            Ok(vec![format!("address={address}")])
        })
    }

    /// Calls `act` with the address of a page in this process.
    pub(crate) fn with_page(
        &self,
        name: &str,
        page: usize,
        act: impl FnOnce(NonNull<u64>) -> Answer,
    ) -> Answer {
        let region = self.0.get(name).ok_or_else(|| format!("{name} is not filled"))?;
        act(region.page(page).ok_or_else(|| format!("{name} has no page {page}"))?)
    }

    /// `free NAME`: `pages=`.
    pub(crate) fn free(&mut self, name: &str) -> Answer {
        let region = self.0.remove(name).ok_or_else(|| format!("{name} is not filled"))?;
        Ok(vec![format!("pages={}", region.pages())])
    }
}

/// Where in the machine's memory the page at `address` lies.
fn physical_address(address: NonNull<u64>) -> io::Result<u64> {
    let mut entry = [0; 8];
    let page = address.as_ptr().addr() / PAGE;
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, page as u64 * 8)?;
    let entry = u64::from_ne_bytes(entry);
    match entry & FRAME {
        // Frame 0 is what those get who may not know.
        frame if entry & PRESENT != 0 && frame != 0 => Ok(frame * PAGE as u64),
        _ => Err(io::Error::other(format!("the page is nowhere: {entry:#x}"))),
    }
}

/// `copy SIZE`: `bytes=` copied from memory to memory, `ns=` that it took.
pub(crate) fn copy(bytes: usize) -> Answer {
    const TIMES: usize = 8;
    let (from, mut to) = (vec![1_u8; bytes], vec![2_u8; bytes]);
    let start = Instant::now();
    for _ in 0..TIMES {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    }
    let ns = start.elapsed().as_nanos();
    Ok(vec![format!("bytes={}", bytes * TIMES), format!("ns={ns}")])
}
