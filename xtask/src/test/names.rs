// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Types of `mm` and `devices`: no two share a name. Tests are left out, as is what a macro defines.

use std::collections::BTreeMap;

use syn::Item;

use super::sources;
use crate::error::{Error, Result, task_error};

/// Where types must differ in name.
const CRATES: [&str; 2] = ["mm/src/", "devices/src/"];

/// Looks for types with equal names.
pub(crate) fn check() -> Result<()> {
    let faults = faults(&sources::read(&[".rs"])?)?;
    if faults.is_empty() { Ok(()) } else { task_error(faults.join("\n  ")) }
}

fn faults(files: &[(String, String)]) -> Result<Vec<String>> {
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (path, text) in files {
        let is_test = path.split(['/', '.']).any(|part| part.ends_with("tests"));
        if is_test || !CRATES.iter().any(|root| path.starts_with(root)) {
            continue;
        }
        let syntax = syn::parse_file(text).map_err(|e| Error::Task(format!("{path}: {e}")))?;
        for name in syntax.items.iter().filter_map(type_name) {
            places.entry(name).or_default().push(path);
        }
    }
    let shared = places.into_iter().filter(|(_, paths)| paths.len() > 1);
    Ok(shared
        .map(|(name, paths)| {
            format!("{} define `{name}`: name each after what it is", paths.join(" and "))
        })
        .collect())
}

/// The name of a type at the top of a file.
fn type_name(item: &Item) -> Option<String> {
    let name = match item {
        Item::Enum(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

#[cfg(test)]
mod tests {
    use super::faults;

    #[test]
    fn finds_types_of_equal_names_outside_tests() {
        let files = [
            ("mm/src/a.rs", "struct Slot; enum Kind { A } fn f() { struct Local; }"),
            ("devices/src/b.rs", "trait Slot {} fn g() { struct Local; }"),
            ("devices/src/b/tests.rs", "struct Kind;"),
            ("vmm/src/c.rs", "struct Kind;"),
        ];
        let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
        let found = faults(&files).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("mm/src/a.rs and devices/src/b.rs define `Slot`"));
    }
}
