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

/// A sum of eight bytes at a time: a guest in an emulated machine has no time for single ones.
fn sum(page: &[u8]) -> u64 {
    let words = page.as_chunks::<8>().0;
    words.iter().fold(checksum::START, |sum, word| {
        (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    })
}

impl Loads {
    /// `load-read NAME PATH SIZE`: reads the beginning of a disk or file; `pages=`. The page cache
    /// keeps none of it.
    pub(crate) fn read(&mut self, name: &str, path: &str, size: usize) -> Answer {
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
        let sums: Vec<u64> = space.chunks(PAGE).map(sum).collect();
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
            damaged += usize::from(sum(page) != expected);
        }
        Ok(vec![format!("pages={seen}"), format!("damaged={damaged}")])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_tell_pages_apart() {
        let mut page = vec![7; PAGE];
        let before = sum(&page);
        page[PAGE - 1] ^= 1;
        assert_ne!(sum(&page), before);
        page[PAGE - 1] ^= 1;
        assert_eq!(sum(&page), before);
    }

    #[test]
    fn damage_is_counted_where_it_is() {
        let bytes: Vec<u8> = (0..4 * PAGE).map(|at| (at / 7) as u8).collect();
        let sums = bytes.chunks(PAGE).map(sum).collect();
        let mut loads = Loads::default();
        loads.0.insert("a".into(), Load { bytes, sums });
        assert_eq!(loads.verify("a", 1, 2).unwrap(), ["pages=2", "damaged=0"]);
        loads.0.get_mut("a").unwrap().bytes[2 * PAGE + 5] ^= 4;
        assert_eq!(loads.verify("a", 0, 2).unwrap(), ["pages=2", "damaged=0"]);
        assert_eq!(loads.verify("a", 0, 9).unwrap(), ["pages=4", "damaged=1"]);
    }
}
