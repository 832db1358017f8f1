// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that use each other in a circle: only those that the section "Circles between files" of
//! docs/architecture.md lists, each with its reason.
//!
//! A row of that table names the files of one circle, with their whole paths, in its first column.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::imports::{self, Arrows};
use super::sources;
use crate::error::{IoContext, Result, task_error};
use crate::paths;

/// Where each crate has its sources.
const CRATES: [&str; 3] = ["mm/src/", "devices/src/", "vmm/src/"];
const DOCUMENT: &str = "docs/architecture.md";
const SECTION: &str = "## Circles between files";

/// Compares the circles of all crates with the list.
pub(crate) fn check() -> Result<()> {
    let files = sources::read(&[".rs"])?;
    let path = paths::workspace().join(DOCUMENT);
    let listed = listed(&fs::read_to_string(&path).doing("reading", &path)?);
    let mut faults = Vec::new();
    let mut found = BTreeSet::new();
    for root in CRATES {
        let arrows = imports::arrows(&files, root)?;
        for circle in circles(&arrows) {
            if !listed.contains(&circle) {
                faults.push(describe(&circle, &arrows));
            }
            found.insert(circle);
        }
    }
    for circle in listed.difference(&found) {
        faults.push(format!("{DOCUMENT} lists a circle that is not there: {}", names(circle)));
    }
    if faults.is_empty() { Ok(()) } else { task_error(faults.join("\n  ")) }
}

type Circle = BTreeSet<String>;

fn names(circle: &Circle) -> String {
    circle.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn describe(circle: &Circle, arrows: &Arrows) -> String {
    let mut lines = vec![format!("files use each other in a circle: {}", names(circle))];
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

/// The rows of the table: the paths between backquotes in each first column.
fn listed(document: &str) -> BTreeSet<Circle> {
    let section = document.split(SECTION).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let column = row.split(" |").next().unwrap_or_default();
        column.split('`').filter(|part| part.contains(".rs")).map(str::to_owned).collect()
    })
    .collect()
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
    use super::{circles, listed};
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

    #[test]
    fn reads_the_table() {
        let text = "## Circles between files\n| files | why |\n| --- | --- |\n| `a/b.rs`, `a/c.rs` | `x.rs` |\n## Next\n| `d.rs` | |\n";
        let found: Vec<_> = listed(text).into_iter().collect();
        assert_eq!(found, [["a/b.rs".to_owned(), "a/c.rs".to_owned()].into()]);
    }
}
