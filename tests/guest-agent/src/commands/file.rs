// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! tmpfs files with a pattern: a random half of their pages can be freed one by one, which leaves
//! memory as fragmented as it gets.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};

use super::{coin, reason};
use crate::console::Answer;
use crate::region::{PAGE, page_bytes};

/// A file, and which of its pages are still there.
struct Pattern {
    file: File,
    path: PathBuf,
    seed: u64,
    kept: Vec<bool>,
}

/// The files there are.
#[derive(Default)]
pub(crate) struct Files(BTreeMap<String, Pattern>);

impl Files {
    /// `file-fill NAME SIZE`: `pages=`.
    pub(crate) fn fill(&mut self, name: &str, bytes: usize) -> Answer {
        if self.0.contains_key(name) || name.contains('/') {
            return Err(format!("{name}: exists already, or is not a plain name"));
        }
        let path = PathBuf::from("/tmp").join(name);
        let seed = self.0.len() as u64 + 101;
        let pages = bytes / PAGE;
        let doing = reason("writing");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| doing(&e))?;
        for index in 0..pages {
            file.write_all(&page_bytes(seed, index)).map_err(|e| doing(&e))?;
        }
        self.0.insert(name.to_owned(), Pattern { file, path, seed, kept: vec![true; pages] });
        Ok(vec![format!("pages={pages}")])
    }

    /// `file-punch NAME SEED`: frees about half of the pages; `dropped=`.
    pub(crate) fn punch(&mut self, name: &str, seed: usize) -> Answer {
        let pattern = self.0.get_mut(name).ok_or_else(|| format!("no file {name}"))?;
        let mut dropped = 0;
        let mut drop = coin(seed);
        for (index, kept) in pattern.kept.iter_mut().enumerate().filter(|(_, kept)| **kept) {
            if drop(index) {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&pattern.file, flags, (index * PAGE) as u64, PAGE as u64)
                    .map_err(|e| reason("fallocate")(&e))?;
                *kept = false;
                dropped += 1;
            }
        }
        Ok(vec![format!("dropped={dropped}")])
    }

    /// `file-verify NAME`: `pages=` that should be there, `damaged=`.
    pub(crate) fn verify(&self, name: &str) -> Answer {
        let pattern = self.0.get(name).ok_or_else(|| format!("no file {name}"))?;
        let (mut pages, mut damaged) = (0, 0);
        let mut page = vec![0; PAGE];
        for index in pattern.kept.iter().enumerate().filter(|(_, kept)| **kept).map(|(at, _)| at) {
            pattern
                .file
                .read_exact_at(&mut page, (index * PAGE) as u64)
                .map_err(|e| reason("reading")(&e))?;
            pages += 1;
            damaged += usize::from(page != page_bytes(pattern.seed, index));
        }
        Ok(vec![format!("pages={pages}"), format!("damaged={damaged}")])
    }

    /// `file-free NAME`.
    pub(crate) fn free(&mut self, name: &str) -> Answer {
        let pattern = self.0.remove(name).ok_or_else(|| format!("no file {name}"))?;
        std::fs::remove_file(&pattern.path).map_err(|e| reason("removing")(&e))?;
        Ok(vec![])
    }
}
