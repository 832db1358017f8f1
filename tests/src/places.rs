// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where in the guest's memory the pages lie that the agent has filled with its pattern: read from
//! the monitor's process, so neither guest nor device is asked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use guest_agent::pattern;

use crate::host::PAGE;
use crate::{Error, Result};

/// Guest memory may be in many mappings, of a block at least.
const MAPPING: u64 = 2 << 20;
/// Read at a time.
const CHUNK: usize = 2 << 20;
/// Pages of the largest thing that is looked for.
const INDEXES: usize = 1 << 12;

/// A page by its seed and its index, and where it was found. More than one place is that of a copy
/// which the guest has left behind.
pub type Places = BTreeMap<(u64, usize), Vec<u64>>;

/// All pages with the pattern whose seed has this lowest byte, in the memory of process `pid`.
pub fn find(pid: u32, seed: u8) -> Result<Places> {
    let path = format!("/proc/{pid}/maps");
    let maps = fs::read_to_string(&path).map_err(Error::io(format!("reading {path}")))?;
    let path = format!("/proc/{pid}/mem");
    let memory = File::open(&path).map_err(Error::io(format!("opening {path}")))?;
    let mut places = Places::new();
    let mut chunk = vec![0; CHUNK];
    for (start, end) in maps.lines().filter_map(mapping) {
        for address in (start..end).step_by(CHUNK) {
            let length = usize::try_from(end - address).unwrap_or(CHUNK).min(CHUNK);
            let bytes = &mut chunk[..length];
            // What the process itself may not read (a window without memory) is no guest memory.
            if memory.read_exact_at(bytes, address).is_err() {
                continue;
            }
            for (page, at) in
                bytes.chunks_exact(PAGE as usize).zip((address..).step_by(PAGE as usize))
            {
                let words = page.as_chunks().0;
                let [first, second] = [words[0], words[1]].map(u64::from_le_bytes);
                let found = pattern::origin(first, second, INDEXES);
                if let Some(key) = found.filter(|(of, _)| of & 0xff == u64::from(seed)) {
                    places.entry(key).or_default().push(at);
                }
            }
        }
    }
    Ok(places)
}

/// Start and end of a mapping that may be guest memory.
fn mapping(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    if !words.next()?.starts_with("rw") {
        return None;
    }
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (end - start >= MAPPING).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_this_very_process_are_found() {
        let page = PAGE as usize;
        let mut memory = vec![0_u8; 4 << 20];
        let fill = |memory: &mut [u8], seed: u64, index: usize| {
            for (bytes, word) in memory.chunks_exact_mut(8).zip(pattern::words(seed, index)) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        };
        let aligned = memory.as_ptr().align_offset(page);
        let start = memory.as_ptr() as u64 + aligned as u64;
        for (at, seed, index) in [(0, 0x3_f7, 5), (1, 0x3_f8, 5), (7, 0x2_f7, 63)] {
            fill(&mut memory[aligned + at * page..][..page], seed, index);
        }
        let places = find(std::process::id(), 0xf7).unwrap();
        let expected = [((0x2_f7, 63), vec![start + 7 * PAGE]), ((0x3_f7, 5), vec![start])];
        assert_eq!(places, Places::from(expected));
    }

    #[test]
    fn only_large_writable_mappings_count() {
        assert_eq!(
            mapping("7f0000000000-7f0000200000 rw-p 0 00:00 0"),
            Some((0x7f00_0000_0000, 0x7f00_0020_0000))
        );
        assert_eq!(mapping("7f0000000000-7f0000200000 r--p 0 00:00 0"), None);
        assert_eq!(mapping("7f0000000000-7f00001ff000 rw-p 0 00:00 0"), None);
    }
}
