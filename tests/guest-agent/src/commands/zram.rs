// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! zram devices with a pattern in them, written and read past the page cache, so that what is in
//! memory is zsmalloc's.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::reason;
use crate::console::Answer;
use crate::region::{PAGE, page_bytes};

/// What is in each device.
#[derive(Default)]
pub(crate) struct Devices(BTreeMap<usize, Contents>);

#[derive(Clone, Copy)]
struct Contents {
    pages: usize,
    /// How often all of it has been written; goes into the pattern.
    rounds: usize,
}

impl Devices {
    /// `zram-fill INDEX SIZE`: sets the device up and writes all of it; `pages=`.
    pub(crate) fn fill(&mut self, index: usize, bytes: usize) -> Answer {
        let control = format!("/sys/block/zram{index}");
        if !fs::exists(&control).unwrap_or(false) {
            // The file makes a new device on every read; the first one exists from the start.
            fs::read("/sys/class/zram-control/hot_add").map_err(|e| reason("hot_add")(&e))?;
        }
        fs::write(format!("{control}/disksize"), bytes.to_string())
            .map_err(|e| reason("disksize")(&e))?;
        let contents = Contents { pages: bytes / PAGE, rounds: 0 };
        self.write(index, contents)?;
        Ok(vec![format!("pages={}", contents.pages)])
    }

    /// `zram-rewrite INDEX`: rewrites all of it with another pattern; `pages=`.
    pub(crate) fn rewrite(&mut self, index: usize) -> Answer {
        let Contents { pages, rounds } = self.contents(index)?;
        self.write(index, Contents { pages, rounds: rounds + 1 })?;
        Ok(vec![format!("pages={pages}")])
    }

    /// `zram-verify INDEX`: `pages=`, `damaged=`.
    pub(crate) fn verify(&self, index: usize) -> Answer {
        let contents = self.contents(index)?;
        let device = open(index)?;
        let mut page = Aligned([0; PAGE]);
        let mut damaged = 0;
        for at in 0..contents.pages {
            device
                .read_exact_at(&mut page.0, (at * PAGE) as u64)
                .map_err(|e| reason("reading")(&e))?;
            damaged += usize::from(page.0[..] != compressible(index, at, contents.rounds)[..]);
        }
        Ok(vec![format!("pages={}", contents.pages), format!("damaged={damaged}")])
    }

    /// `zram-free INDEX`.
    pub(crate) fn free(&mut self, index: usize) -> Answer {
        self.0.remove(&index).ok_or_else(|| format!("zram{index} is not filled"))?;
        fs::write(format!("/sys/block/zram{index}/reset"), "1").map_err(|e| reason("reset")(&e))?;
        Ok(vec![])
    }

    fn contents(&self, index: usize) -> Result<Contents, String> {
        self.0.get(&index).copied().ok_or_else(|| format!("zram{index} is not filled"))
    }

    fn write(&mut self, index: usize, contents: Contents) -> Result<(), String> {
        let device = open(index)?;
        let mut page = Aligned([0; PAGE]);
        for at in 0..contents.pages {
            page.0.copy_from_slice(&compressible(index, at, contents.rounds));
            device.write_all_at(&page.0, (at * PAGE) as u64).map_err(|e| reason("writing")(&e))?;
        }
        self.0.insert(index, contents);
        Ok(())
    }
}

/// Direct I/O wants memory aligned to blocks.
#[repr(align(4096))]
struct Aligned([u8; PAGE]);

fn open(index: usize) -> Result<fs::File, String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/dev/zram{index}"))
        .map_err(|e| reason("opening the zram device")(&e))
}

/// A page that compresses to between a quarter and three quarters, so that many size classes are
/// in use; to another one each round.
fn compressible(seed: usize, index: usize, round: usize) -> Vec<u8> {
    let mut page = page_bytes(301 + (seed + round * 1000) as u64, index);
    let zeroes = PAGE / 4 * (1 + (index + round) % 3);
    page[..zeroes].fill(0);
    page
}
