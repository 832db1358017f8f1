// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which file of a crate uses which other, found from its paths: `use` declarations, paths that
//! begin with `crate`, `self` or `super`, and names that were imported. A re-export stands for the
//! file that defines the name, and is itself no use of it. Tests are left out, and so is what a
//! macro makes of other tokens.
//!
//! - `contents.rs`: what one module defines, imports and names
//! - `tree.rs`: the modules of a crate, and which of them a path names

mod contents;
mod tree;

use crate::error::{Error, Result};
pub(super) use tree::Arrows;
use tree::Tree;

/// The arrows between the files of the crate whose sources are below `root` (`mm/src/`).
///
/// # Errors
///
/// A file is not Rust.
pub(super) fn arrows(files: &[(String, String)], root: &str) -> Result<Arrows> {
    let mut tree = Tree::new(format!("{root}lib.rs"));
    for (path, text) in files {
        let Some(inner) = path.strip_prefix(root).and_then(|inner| inner.strip_suffix(".rs"))
        else {
            continue;
        };
        let mut names: Vec<_> = inner.split('/').collect();
        if ["lib", "mod"].contains(names.last().unwrap_or(&"")) {
            names.pop();
        }
        if names == ["main"] || names.contains(&"tests") {
            continue;
        }
        let syntax = syn::parse_file(text).map_err(|e| Error::Task(format!("{path}: {e}")))?;
        tree.add(&names, path, &syntax.items);
    }
    Ok(tree.arrows())
}

#[cfg(test)]
mod tests {
    use super::arrows;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let owned: Vec<_> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        let arrows = arrows(&owned, "p/src/").unwrap();
        let all = arrows.iter().flat_map(|(from, to)| to.keys().map(move |to| (from, to)));
        all.map(|(from, to)| format!("{} {}", &from[6..], &to[6..])).collect()
    }

    #[test]
    fn follows_imports_and_paths_to_the_file_that_defines_the_name() {
        let found = of(&[
            ("p/src/lib.rs", "mod a; mod b; pub use b::deep::Thing;"),
            ("p/src/a.rs", "use crate::Thing; use super::b; fn f() { b::other(); }"),
            ("p/src/b/mod.rs", "mod deep; pub use deep::Thing; pub(in crate::a) fn other() {}"),
            ("p/src/b/deep.rs", "pub struct Thing;"),
        ]);
        assert_eq!(found, ["a.rs b/deep.rs", "a.rs b/mod.rs"]);
        let found = of(&[
            ("p/src/lib.rs", "mod a; pub use a::Thing; fn f(_: Thing) {}"),
            ("p/src/a.rs", "pub struct Thing;"),
        ]);
        assert_eq!(found, ["lib.rs a.rs"]);
    }

    #[test]
    fn tells_variables_from_modules_of_their_name() {
        let found = of(&[
            ("p/src/lib.rs", "mod a; mod b; fn f(a: u8) -> u8 { b::X + a }"),
            ("p/src/a.rs", ""),
            ("p/src/b.rs", "pub const X: u8 = 1;"),
        ]);
        assert_eq!(found, ["lib.rs b.rs"]);
    }

    #[test]
    fn leaves_out_tests_and_declarations() {
        let found = of(&[
            ("p/src/lib.rs", "mod a; #[cfg(test)] mod b;"),
            ("p/src/a.rs", "#[cfg(test)] mod tests { use crate::b::X; }"),
            ("p/src/b.rs", "use crate::a::Y;"),
        ]);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn sees_paths_in_macro_calls_and_globs() {
        let found = of(&[
            ("p/src/lib.rs", "mod a; mod b; mod c;"),
            ("p/src/a.rs", "fn f() { vec![crate::b::X] }"),
            ("p/src/b.rs", "pub struct X;"),
            ("p/src/c.rs", "use super::b::*; fn f() { println!(\"{}\", super::a::f()) }"),
        ]);
        assert_eq!(found, ["a.rs b.rs", "c.rs a.rs", "c.rs b.rs"]);
    }
}
