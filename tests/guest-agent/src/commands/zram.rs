// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! zram devices with a pattern in them, written and read past the page cache, so that what is in
//! memory is zsmalloc's.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::reason;
use crate::console::Answer;
use crate::region::{PAGE, page_bytes};

/// Pages filled in each device.
#[derive(Default)]
pub(crate) struct Devices(BTreeMap<usize, usize>);

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
        let device = open(index)?;
        let mut page = Aligned([0; PAGE]);
        for at in 0..bytes / PAGE {
            page.0.copy_from_slice(&compressible(index, at));
            device.write_all_at(&page.0, (at * PAGE) as u64).map_err(|e| reason("writing")(&e))?;
        }
        self.0.insert(index, bytes / PAGE);
        Ok(vec![format!("pages={}", bytes / PAGE)])
    }

    /// `zram-verify INDEX`: `pages=`, `damaged=`.
    pub(crate) fn verify(&self, index: usize) -> Answer {
        let pages = *self.0.get(&index).ok_or_else(|| format!("zram{index} is not filled"))?;
        let device = open(index)?;
        let mut page = Aligned([0; PAGE]);
        let mut damaged = 0;
        for at in 0..pages {
            device
                .read_exact_at(&mut page.0, (at * PAGE) as u64)
                .map_err(|e| reason("reading")(&e))?;
            damaged += usize::from(page.0[..] != compressible(index, at)[..]);
        }
        Ok(vec![format!("pages={pages}"), format!("damaged={damaged}")])
    }

    /// `zram-free INDEX`.
    pub(crate) fn free(&mut self, index: usize) -> Answer {
        self.0.remove(&index).ok_or_else(|| format!("zram{index} is not filled"))?;
        fs::write(format!("/sys/block/zram{index}/reset"), "1").map_err(|e| reason("reset")(&e))?;
        Ok(vec![])
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
/// in use.
fn compressible(seed: usize, index: usize) -> Vec<u8> {
    let mut page = page_bytes(301 + seed as u64, index);
    let zeroes = PAGE / 4 * (1 + index % 3);
    page[..zeroes].fill(0);
    page
}
