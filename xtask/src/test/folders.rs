// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each folder's head file (`mod.rs`, `lib.rs` or `main.rs`) lists the files of its folder in its
//! head comment: all of them, and no others.
//!
//! A file counts as listed if the comment has its name as code: `name.rs`, `name/` for a folder, or
//! `name` alone (which is also how a link to the module looks). A name with `.rs` or `/` that is not
//! in the folder is an error: it was renamed or removed.

use std::collections::{BTreeMap, BTreeSet};

use super::sources;
use crate::error::{Result, task_error};

/// Unit tests need no entry: they are always in a module of this name.
const TESTS: &str = "tests";

const HEADS: [&str; 3] = ["lib.rs", "main.rs", "mod.rs"];

/// Checks all folders with sources. Folders below `src` need a head comment; in others it is
/// optional.
pub(crate) fn check() -> Result<()> {
    let faults = faults(&sources::read(&[".rs"])?);
    if faults.is_empty() { Ok(()) } else { task_error(faults.join("\n  ")) }
}

/// What a folder holds.
#[derive(Default)]
struct Folder<'a> {
    /// Its files and subfolders, by the name of the module.
    modules: BTreeSet<&'a str>,
    /// Its head comment.
    head: Option<String>,
}

fn faults(files: &[(String, String)]) -> Vec<String> {
    let mut folders: BTreeMap<&str, Folder<'_>> = BTreeMap::new();
    for (path, text) in files {
        let Some((mut folder, name)) = path.rsplit_once('/') else { continue };
        let this = folders.entry(folder).or_default();
        if HEADS.contains(&name) {
            this.head.get_or_insert_default().push_str(&head_comment(text));
        } else if let Some(module) = name.strip_suffix(".rs") {
            this.modules.insert(module);
        }
        // The folder is a module of the one above, if that has sources of its own.
        while let Some((above, name)) = folder.rsplit_once('/') {
            folders.entry(above).or_default().modules.insert(name);
            folder = above;
        }
    }
    let holds_sources = |folder: &str| {
        files.iter().any(|(path, _)| path.rsplit_once('/').is_some_and(|(f, _)| f == folder))
    };
    let mut faults = Vec::new();
    for (path, folder) in folders.iter().filter(|(path, _)| holds_sources(path)) {
        let Some(head) = &folder.head else {
            if path.contains("/src/") {
                faults.push(format!("{path}: has sources, but neither mod.rs, lib.rs nor main.rs"));
            }
            continue;
        };
        let code = code_spans(head);
        let names = |module: &str| {
            let is = |span: &&str| span.trim_end_matches('/') == module;
            let is_file = |span: &&str| span.strip_suffix(".rs") == Some(module);
            code.iter().any(|span| is(span) || is_file(span))
        };
        let listed = |module: &&&str| **module == TESTS || names(module);
        for module in folder.modules.iter().filter(|module| !listed(module)) {
            faults.push(format!("{path}: the head comment does not list `{module}`"));
        }
        let gone = |span: &&str| {
            let name = span.strip_suffix(".rs").or_else(|| span.strip_suffix('/'));
            name.is_some_and(|name| {
                !name.contains(['/', ' ', '.'])
                    && !folder.modules.contains(name)
                    && !HEADS.contains(&&*format!("{name}.rs"))
            })
        };
        for span in code.iter().filter(|span| gone(span)) {
            faults.push(format!("{path}: the head comment lists `{span}`, which is not there"));
        }
    }
    faults
}

/// The `//!` lines at the top of a file.
fn head_comment(text: &str) -> String {
    text.lines()
        .skip_while(|line| !line.starts_with("//!"))
        .take_while(|line| line.starts_with("//!"))
        .map(|line| format!("{}\n", line.trim_start_matches("//!").trim()))
        .collect()
}

/// What stands between backquotes, outside fenced code.
fn code_spans(comment: &str) -> Vec<&str> {
    let prose = comment.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

#[cfg(test)]
mod tests {
    use super::faults;

    fn faults_of(files: &[(&str, &str)]) -> Vec<String> {
        let owned: Vec<_> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        faults(&owned)
    }

    #[test]
    fn accepts_a_head_that_lists_every_file_and_folder() {
        let head = "// SPDX\n//! - `a.rs` one\n//! * [`b`]: two\n//! - `c/` three\n//! ```\n//! `x.rs`\n//! ```\n";
        let c = "//! `d.rs`\n";
        let files = [("p/src/lib.rs", head), ("p/src/a.rs", ""), ("p/src/b.rs", "")];
        let more = [("p/src/c/mod.rs", c), ("p/src/c/d.rs", "")];
        assert_eq!(faults_of(&[&files[..], &more[..]].concat()), [""; 0]);
    }

    #[test]
    fn names_files_that_are_missing_from_the_list() {
        let found = faults_of(&[("p/src/mod.rs", "//! `a.rs`\n"), ("p/src/b.rs", "")]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("does not list `b`"));
        assert!(found[1].contains("`a.rs`, which is not there"));
    }

    #[test]
    fn demands_a_head_below_src_only() {
        assert_eq!(faults_of(&[("p/src/a/b.rs", "")]).len(), 1);
        assert_eq!(faults_of(&[("p/benches/a.rs", "")]).len(), 0);
    }
}
