// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! GPU buffers with a pattern, by name: what fragments memory where buffers cannot move.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use super::reason;
use crate::console::Answer;
use crate::drm::{Buffer, Card, Kind};
use crate::region::PAGE;

/// Pages of the buffers, in turn: many small ones and a few large ones, which leaves the smallest
/// holes when every other one is freed.
const SIZES: [usize; 16] = [1, 2, 1, 3, 4, 1, 2, 8, 1, 2, 16, 1, 3, 2, 1, 64];

/// Seeds of sets are the numbers from here up to a byte's largest but one; that one is the client's
/// (`screen.rs`).
const FIRST_SEED: u64 = 100;
const SEEDS: u64 = 0xff - FIRST_SEED;

/// The sets of buffers that there are.
#[derive(Default)]
pub(crate) struct Sets {
    sets: BTreeMap<String, Set>,
    seeded: u64,
}

struct Set {
    seed: u64,
    card: Card,
    /// In the order in which they were made; the position goes into the pattern.
    buffers: Vec<Option<Buffer>>,
    exports: Vec<Export>,
    /// The same buffers as another client has them.
    imports: Vec<Buffer>,
}

/// A buffer that is exported.
struct Export {
    dma_buf: OwnedFd,
    position: usize,
    pages: usize,
}

impl Sets {
    /// `gpu-fill NAME SIZE dumb|blob`: buffers of all sizes up to that much, or until there is no
    /// more memory, or a process was `killed` for it; `buffers=`, `pages=`, `refused=1` if memory
    /// ran out, `killed=1` if it ended in that.
    pub(crate) fn fill(
        &mut self,
        name: &str,
        bytes: usize,
        kind: &str,
        mut killed: impl FnMut() -> bool,
    ) -> Answer {
        let kind = match kind {
            "dumb" => Kind::Dumb,
            "blob" => Kind::Blob,
            other => return Err(format!("no such kind: {other}")),
        };
        if self.sets.contains_key(name) {
            return Err(format!("{name} is filled already"));
        }
        let card = Card::open().map_err(|e| reason("card")(&e))?;
        let seed = self.new_seed();
        let mut set =
            Set { seed, card, buffers: Vec::new(), exports: Vec::new(), imports: Vec::new() };
        let filled = set.fill(kind, bytes / PAGE, &mut killed);
        let (buffers, pages) = (set.buffers.len(), set.pages());
        self.sets.insert(name.to_owned(), set);
        let (refused, killed) = match filled {
            Ok(()) => (0, u8::from(killed())),
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => (1, u8::from(killed())),
            Err(error) => return Err(reason("buffer")(&error)),
        };
        Ok(vec![
            format!("buffers={buffers}"),
            format!("pages={pages}"),
            format!("refused={refused}"),
            format!("killed={killed}"),
        ])
    }

    /// `gpu-punch NAME`: frees every other buffer; `freed=` pages.
    pub(crate) fn punch(&mut self, name: &str) -> Answer {
        let set = self.get(name)?;
        let before = set.pages();
        for buffer in set.buffers.iter_mut().step_by(2) {
            *buffer = None;
        }
        Ok(vec![format!("freed={}", before - set.pages())])
    }

    /// `gpu-verify NAME`: `pages=`, `damaged=`.
    pub(crate) fn verify(&mut self, name: &str) -> Answer {
        let set = self.get(name)?;
        let damaged = set.damaged().map_err(|e| reason("mapping")(&e))?;
        Ok(vec![format!("pages={}", set.pages()), format!("damaged={damaged}")])
    }

    /// `gpu-repaint NAME`: checks every page and fills it with a pattern that no page had before;
    /// `pages=`, `damaged=`, and the `seed=` by which it is known.
    pub(crate) fn repaint(&mut self, name: &str) -> Answer {
        let seed = self.new_seed();
        let set = self.get(name)?;
        let damaged = set.repaint(seed).map_err(|e| reason("mapping")(&e))?;
        Ok(vec![
            format!("pages={}", set.pages()),
            format!("damaged={damaged}"),
            format!("seed={seed}"),
        ])
    }

    /// `gpu-export NAME COUNT`: exports the last so many buffers until `gpu-unexport` or `gpu-free`;
    /// `exported=` pages.
    pub(crate) fn export(&mut self, name: &str, count: usize) -> Answer {
        let set = self.get(name)?;
        let mut pages = 0;
        let live = set.buffers.iter().enumerate().rev();
        let live = live.filter_map(|(position, buffer)| Some((position, buffer.as_ref()?)));
        for (position, buffer) in live.take(count) {
            let dma_buf = buffer.export().map_err(|e| reason("export")(&e))?;
            set.exports.push(Export { dma_buf, position, pages: buffer.pages() });
            pages += buffer.pages();
        }
        Ok(vec![format!("exported={pages}")])
    }

    /// `gpu-import NAME`: another client opens what is exported, until `gpu-unexport`; `pages=`,
    /// `damaged=`.
    pub(crate) fn import(&mut self, name: &str) -> Answer {
        let set = self.get(name)?;
        let other = Card::open().map_err(|e| reason("card")(&e))?;
        let (mut pages, mut damaged) = (0, 0);
        for Export { dma_buf, position, pages: length } in &set.exports {
            let buffer =
                Buffer::import(&other, dma_buf, *length).map_err(|e| reason("import")(&e))?;
            let mapping = buffer.map().map_err(|e| reason("mapping")(&e))?;
            let seed = set.seed_of(*position);
            damaged += (0..*length).filter(|&i| !mapping.is_intact(seed, i)).count();
            pages += length;
            set.imports.push(buffer);
        }
        Ok(vec![format!("pages={pages}"), format!("damaged={damaged}")])
    }

    /// `gpu-unexport NAME`: closes what was exported and imported.
    pub(crate) fn unexport(&mut self, name: &str) -> Answer {
        let set = self.get(name)?;
        set.imports.clear();
        set.exports.clear();
        Ok(vec![])
    }

    /// `gpu-free NAME`: `pages=`.
    pub(crate) fn free(&mut self, name: &str) -> Answer {
        let set = self.sets.remove(name).ok_or_else(|| format!("{name} is not filled"))?;
        Ok(vec![format!("pages={}", set.pages())])
    }

    fn new_seed(&mut self) -> u64 {
        self.seeded += 1;
        FIRST_SEED + (self.seeded - 1) % SEEDS
    }

    fn get(&mut self, name: &str) -> Result<&mut Set, String> {
        self.sets.get_mut(name).ok_or_else(|| format!("{name} is not filled"))
    }
}

impl Set {
    fn fill(
        &mut self,
        kind: Kind,
        pages: usize,
        killed: &mut impl FnMut() -> bool,
    ) -> io::Result<()> {
        let mut left = pages;
        // Every other size in turn is freed together: shift by one each time round.
        for at in 0.. {
            if left == 0 || killed() {
                break;
            }
            let size = SIZES[(at + at / SIZES.len()) % SIZES.len()].min(left);
            let buffer = Buffer::new(&self.card, kind, size)?;
            let seed = self.seed_of(self.buffers.len());
            let mut mapping = buffer.map()?;
            for index in 0..size {
                mapping.fill(seed, index);
            }
            self.buffers.push(Some(buffer));
            left -= size;
        }
        Ok(())
    }

    fn repaint(&mut self, seed: u64) -> io::Result<usize> {
        let old = std::mem::replace(&mut self.seed, seed);
        let mut damaged = 0;
        for (position, buffer) in self.buffers.iter().enumerate() {
            let Some(buffer) = buffer else { continue };
            let mut mapping = buffer.map()?;
            for index in 0..buffer.pages() {
                damaged += usize::from(!mapping.is_intact(seed_at(old, position), index));
                mapping.fill(seed_at(seed, position), index);
            }
        }
        Ok(damaged)
    }

    fn damaged(&self) -> io::Result<usize> {
        let mut damaged = 0;
        for (position, buffer) in self.buffers.iter().enumerate() {
            let Some(buffer) = buffer else { continue };
            let mapping = buffer.map()?;
            let seed = self.seed_of(position);
            damaged += (0..buffer.pages()).filter(|&i| !mapping.is_intact(seed, i)).count();
        }
        Ok(damaged)
    }

    fn pages(&self) -> usize {
        self.buffers.iter().flatten().map(Buffer::pages).sum()
    }

    fn seed_of(&self, position: usize) -> u64 {
        seed_at(self.seed, position)
    }
}

/// The seed of the buffer at that position of a set.
fn seed_at(set: u64, position: usize) -> u64 {
    set + ((position as u64) << 8)
}
