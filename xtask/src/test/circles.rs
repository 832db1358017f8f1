// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Circles between files.

use std::collections::{BTreeMap, BTreeSet};

use super::imports::{self, Arrows};
use super::sources;
use crate::error::{Result, task_error};

/// Where each crate has its sources.
const CRATES: [&str; 3] = ["mm/src/", "devices/src/", "vmm/src/"];

/// Looks for circles in all crates.
pub(crate) fn check() -> Result<()> {
    let files = sources::read(&[".rs"])?;
    let mut faults = Vec::new();
    for root in CRATES {
        let arrows = imports::arrows(&files, root)?;
        faults.extend(circles(&arrows).iter().map(|circle| describe(circle, &arrows)));
    }
    if faults.is_empty() { Ok(()) } else { task_error(faults.join("\n  ")) }
}

type Circle = BTreeSet<String>;

fn describe(circle: &Circle, arrows: &Arrows) -> String {
    let names: Vec<_> = circle.iter().map(String::as_str).collect();
    let mut lines = vec![format!("files use each other in a circle: {}", names.join(", "))];
    for from in circle {
        for (to, taken) in arrows.get(from).into_iter().flatten() {
            if circle.contains(to) {
                let taken: Vec<_> = taken.iter().map(String::as_str).collect();
                lines.push(format!("    {from} takes {} from {to}", taken.join(", ")));
            }
        }
    }
    lines.join("\n")
}

/// The sets of files that reach each other (Tarjan's strongly connected components), without those
/// of one file.
fn circles(arrows: &Arrows) -> Vec<Circle> {
    let mut search = Search::new(arrows);
    for file in arrows.keys() {
        if !search.number.contains_key(file.as_str()) {
            search.visit(file);
        }
    }
    search.circles
}

struct Search<'a> {
    arrows: &'a Arrows,
    number: BTreeMap<&'a str, usize>,
    lowest: BTreeMap<&'a str, usize>,
    stack: Vec<&'a str>,
    circles: Vec<Circle>,
}

impl<'a> Search<'a> {
    fn new(arrows: &'a Arrows) -> Self {
        Self {
            arrows,
            number: BTreeMap::new(),
            lowest: BTreeMap::new(),
            stack: Vec::new(),
            circles: Vec::new(),
        }
    }

    fn visit(&mut self, file: &'a str) {
        let number = self.number.len();
        self.number.insert(file, number);
        let mut lowest = number;
        self.stack.push(file);
        for next in self.arrows.get(file).into_iter().flat_map(BTreeMap::keys) {
            let next = next.as_str();
            match self.number.get(next) {
                None => {
                    self.visit(next);
                    lowest = lowest.min(self.lowest[next]);
                }
                Some(&seen) if self.stack.contains(&next) => lowest = lowest.min(seen),
                Some(_) => {}
            }
        }
        self.lowest.insert(file, lowest);
        if lowest == number {
            let first = self.stack.iter().position(|&on| on == file).unwrap_or_default();
            let members = self.stack.split_off(first);
            if members.len() > 1 {
                self.circles.push(members.into_iter().map(str::to_owned).collect());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::circles;
    use crate::test::imports::Arrows;

    fn arrows(pairs: &[(&str, &str)]) -> Arrows {
        let mut arrows = Arrows::new();
        for (from, to) in pairs {
            arrows.entry((*from).into()).or_default().entry((*to).into()).or_default();
        }
        arrows
    }

    #[test]
    fn finds_each_circle_once_and_no_chain() {
        let pairs = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e"), ("e", "d")];
        let found = circles(&arrows(&pairs));
        let found: Vec<Vec<_>> = found.into_iter().map(|c| c.into_iter().collect()).collect();
        assert_eq!(found, [vec!["d", "e"], vec!["a", "b", "c"]]);
        assert!(circles(&arrows(&[("a", "b"), ("b", "c"), ("a", "c")])).is_empty());
    }
}
