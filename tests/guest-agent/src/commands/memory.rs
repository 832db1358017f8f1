// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Anonymous memory with a pattern, by name.

use std::collections::BTreeMap;

use super::{coin, reason};
use crate::console::Answer;
use crate::region::Region;

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

    /// `free NAME`: `pages=`.
    pub(crate) fn free(&mut self, name: &str) -> Answer {
        let region = self.0.remove(name).ok_or_else(|| format!("{name} is not filled"))?;
        Ok(vec![format!("pages={}", region.pages())])
    }
}
