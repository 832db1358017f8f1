// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory with the contents of a disk, as programs and their data would be, and checked page by page.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use guest_agent::checksum;
use rustix::fs::OFlags;

use super::reason;
use crate::console::Answer;
use crate::region::PAGE;

/// Bytes read at once, and what direct reads must be aligned to.
const CHUNK: usize = 1 << 20;

/// Memory, and the sum of each of its pages.
struct Load {
    bytes: Vec<u8>,
    sums: Vec<u64>,
}

/// All of them, by name.
#[derive(Default)]
pub(crate) struct Loads(HashMap<String, Load>);

/// Reads the beginning of a disk or file. The page cache keeps none of it.
pub(super) fn read_direct(path: &str, size: usize) -> Result<Vec<u8>, String> {
    let doing = reason("reading");
    let direct = i32::try_from(OFlags::DIRECT.bits()).map_err(|e| doing(&e))?;
    let mut file =
        OpenOptions::new().read(true).custom_flags(direct).open(path).map_err(|e| doing(&e))?;
    let size = size.next_multiple_of(CHUNK);
    let mut space = vec![0; size + CHUNK];
    let at = space.as_ptr().align_offset(CHUNK);
    let mut filled = at;
    while filled < at + size {
        let read = file.read(&mut space[filled..(filled + CHUNK).min(at + size)]);
        match read.map_err(|e| doing(&e))? {
            0 => return Err(format!("{path} has {} bytes only", filled - at)),
            more => filled += more,
        }
    }
    space.drain(..at);
    space.truncate(size);
    Ok(space)
}

impl Loads {
    /// `load-read NAME PATH SIZE`: reads the beginning of a disk or file; `pages=`.
    pub(crate) fn read(&mut self, name: &str, path: &str, size: usize) -> Answer {
        let space = read_direct(path, size)?;
        let sums: Vec<u64> = space.chunks(PAGE).map(checksum::of_pages).collect();
        let pages = sums.len();
        self.0.insert(name.to_owned(), Load { bytes: space, sums });
        Ok(vec![format!("pages={pages}")])
    }

    /// `load-verify NAME FIRST COUNT`: checks pages; `pages=`, `damaged=`.
    pub(crate) fn verify(&self, name: &str, first: usize, count: usize) -> Answer {
        let load = self.0.get(name).ok_or_else(|| format!("no load {name}"))?;
        let pages = load.bytes.chunks(PAGE).zip(&load.sums).skip(first).take(count);
        let (mut seen, mut damaged) = (0, 0);
        for (page, &expected) in pages {
            seen += 1;
            damaged += usize::from(checksum::of_pages(page) != expected);
        }
        Ok(vec![format!("pages={seen}"), format!("damaged={damaged}")])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_counted_where_it_is() {
        let bytes: Vec<u8> = (0..4 * PAGE).map(|at| (at / 7) as u8).collect();
        let sums = bytes.chunks(PAGE).map(checksum::of_pages).collect();
        let mut loads = Loads::default();
        loads.0.insert("a".into(), Load { bytes, sums });
        assert_eq!(loads.verify("a", 1, 2).unwrap(), ["pages=2", "damaged=0"]);
        loads.0.get_mut("a").unwrap().bytes[2 * PAGE + 5] ^= 4;
        assert_eq!(loads.verify("a", 0, 2).unwrap(), ["pages=2", "damaged=0"]);
        assert_eq!(loads.verify("a", 0, 9).unwrap(), ["pages=4", "damaged=1"]);
    }
}
