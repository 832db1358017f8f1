// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that compresses, as that of programs does: pages of words, each page its own, with a
//! version that rises when the page is written again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::console::Answer;
use crate::region::PAGE;

/// What the text is made of.
const WORDS: [&str; 16] = [
    "memory ", "page ", "block ", "guest ", "host ", "the ", "of ", "and ", "frame\n", "0x1000 ",
    "movable ", "pool ", "is ", "in ", "kernel ", "=\t",
];

/// One stretch of memory.
struct Text {
    bytes: Vec<u8>,
    versions: Vec<u32>,
    seed: u64,
}

/// All of them, by name.
#[derive(Default)]
pub(crate) struct Texts(HashMap<String, Text>);

/// The contents of a page.
fn page(seed: u64, index: usize, version: u32) -> impl Iterator<Item = u8> {
    let mut state = (seed << 32 ^ index as u64) << 20 ^ u64::from(version) | 1;
    let name = format!("{seed}/{index}/{version}: ");
    let words = std::iter::repeat_with(move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        WORDS[(state >> 60) as usize].bytes()
    });
    name.into_bytes().into_iter().chain(words.flatten()).take(PAGE)
}

impl Text {
    fn new(seed: u64, size: usize) -> Self {
        let pages = size.div_ceil(PAGE);
        let bytes = (0..pages).flat_map(|index| page(seed, index, 0)).collect();
        Self { bytes, versions: vec![0; pages], seed }
    }

    fn is_intact(&self, index: usize) -> bool {
        let found = &self.bytes[index * PAGE..(index + 1) * PAGE];
        page(self.seed, index, self.versions[index]).eq(found.iter().copied())
    }

    fn rewrite(&mut self, index: usize) {
        self.versions[index] += 1;
        let text = page(self.seed, index, self.versions[index]);
        let to = self.bytes[index * PAGE..(index + 1) * PAGE].iter_mut();
        to.zip(text).for_each(|(to, byte)| *to = byte);
    }
}

impl Texts {
    pub(crate) fn fill(&mut self, name: &str, size: usize) -> Answer {
        let seed = self.0.len() as u64 + 1;
        match self.0.entry(name.to_owned()) {
            Entry::Occupied(_) => Err(format!("there is a text {name} already")),
            Entry::Vacant(entry) => {
                let text = entry.insert(Text::new(seed, size));
                Ok(vec![format!("pages={}", text.versions.len())])
            }
        }
    }

    pub(crate) fn verify(&self, name: &str) -> Answer {
        let text = self.0.get(name).ok_or_else(|| format!("no text {name}"))?;
        let damaged = (0..text.versions.len()).filter(|&index| !text.is_intact(index)).count();
        Ok(vec![format!("pages={}", text.versions.len()), format!("damaged={damaged}")])
    }

    /// Checks `count` scattered pages and rewrites them.
    pub(crate) fn touch(&mut self, name: &str, count: usize, seed: usize) -> Answer {
        let text = self.0.get_mut(name).ok_or_else(|| format!("no text {name}"))?;
        let mut state = seed as u64 | 1;
        let mut damaged = 0;
        for _ in 0..count {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let index = (state >> 33) as usize % text.versions.len();
            damaged += usize::from(!text.is_intact(index));
            text.rewrite(index);
        }
        Ok(vec![format!("pages={count}"), format!("damaged={damaged}")])
    }

    pub(crate) fn free(&mut self, name: &str) -> Answer {
        let text = self.0.remove(name).ok_or_else(|| format!("no text {name}"))?;
        Ok(vec![format!("pages={}", text.versions.len())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_differ_and_damage_is_seen() {
        let mut texts = Texts::default();
        assert_eq!(texts.fill("a", 3 * PAGE).unwrap(), ["pages=3"]);
        assert!(texts.fill("a", PAGE).is_err());
        assert_eq!(texts.verify("a").unwrap(), ["pages=3", "damaged=0"]);
        assert_eq!(texts.touch("a", 10, 7).unwrap(), ["pages=10", "damaged=0"]);
        assert_eq!(texts.verify("a").unwrap(), ["pages=3", "damaged=0"]);
        let text = texts.0.get_mut("a").unwrap();
        assert_ne!(text.bytes[..PAGE], text.bytes[PAGE..2 * PAGE]);
        text.bytes[PAGE + 9] ^= 1;
        assert_eq!(texts.verify("a").unwrap(), ["pages=3", "damaged=1"]);
        assert_eq!(texts.free("a").unwrap(), ["pages=3"]);
    }
}
