// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Types of `mm`, `devices` and `vmm`: no two share a name. Tests are left out, as is what a macro
//! defines.
//!
//! The wire has names of its own, which clients see as schemas of the OpenAPI document: a type of
//! `vmm/src/api/` or `vmm/src/config/` that has a schema may have one namesake, its twin on the
//! layer below. And every resource of the API has its `Description` and its `Machine`.

use std::collections::BTreeMap;

use syn::{Attribute, Item};

use super::sources;
use crate::error::{Error, Result, task_error};

/// Where types must differ in name.
const CRATES: [&str; 3] = ["mm/src/", "devices/src/", "vmm/src/"];

/// Where types of the wire stand.
const WIRE: [&str; 2] = ["vmm/src/api/", "vmm/src/config/"];

/// What each file of `vmm/src/api/` may define for itself.
const OF_EACH_RESOURCE: [&str; 2] = ["Description", "Machine"];

/// The files that define a name.
#[derive(Default)]
struct Places<'a> {
    wire: Vec<&'a str>,
    others: Vec<&'a str>,
}

/// Looks for types with equal names.
pub(crate) fn check() -> Result<()> {
    let faults = faults(&sources::read(&[".rs"])?)?;
    if faults.is_empty() { Ok(()) } else { task_error(faults.join("\n  ")) }
}

fn faults(files: &[(String, String)]) -> Result<Vec<String>> {
    let mut names: BTreeMap<String, Places<'_>> = BTreeMap::new();
    for (path, text) in files {
        let is_test = path.split(['/', '.']).any(|part| part.ends_with("tests"));
        if is_test || !CRATES.iter().any(|root| path.starts_with(root)) {
            continue;
        }
        let syntax = syn::parse_file(text).map_err(|e| Error::Task(format!("{path}: {e}")))?;
        for (name, attributes) in syntax.items.iter().filter_map(type_name) {
            if path.starts_with(WIRE[0]) && OF_EACH_RESOURCE.contains(&name.as_str()) {
                continue;
            }
            let places = names.entry(name).or_default();
            if WIRE.iter().any(|root| path.starts_with(root)) && has_schema(attributes) {
                places.wire.push(path);
            } else {
                places.others.push(path);
            }
        }
    }
    let shared = names.into_iter().filter(|(_, at)| at.wire.len() > 1 || at.others.len() > 1);
    Ok(shared
        .map(|(name, Places { wire, others })| {
            let paths = [wire, others].concat().join(" and ");
            format!("{paths} define `{name}`: name each after what it is")
        })
        .collect())
}

/// Whether the type derives a schema of the OpenAPI document.
fn has_schema(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("derive")).any(|derive| {
        derive.meta.require_list().is_ok_and(|list| {
            list.tokens.clone().into_iter().any(|token| token.to_string() == "ToSchema")
        })
    })
}

/// The name and attributes of a type at the top of a file.
fn type_name(item: &Item) -> Option<(String, &[Attribute])> {
    let (name, attributes) = match item {
        Item::Enum(item) => (&item.ident, &item.attrs),
        Item::Struct(item) => (&item.ident, &item.attrs),
        Item::Trait(item) => (&item.ident, &item.attrs),
        Item::Type(item) => (&item.ident, &item.attrs),
        Item::Union(item) => (&item.ident, &item.attrs),
        _ => return None,
    };
    Some((name.to_string(), attributes))
}

#[cfg(test)]
mod tests {
    use super::faults;

    fn found<const N: usize>(files: [(&str, &str); N]) -> Vec<String> {
        faults(&files.map(|(path, text)| (path.to_owned(), text.to_owned()))).unwrap()
    }

    #[test]
    fn finds_types_of_equal_names_outside_tests() {
        let found = found([
            ("mm/src/a.rs", "struct Slot; enum Kind { A } fn f() { struct Local; }"),
            ("devices/src/b.rs", "trait Slot {} fn g() { struct Local; }"),
            ("devices/src/b/tests.rs", "struct Kind;"),
            ("vmm/src/c.rs", "struct Shared; type Look = u8;"),
            ("vmm/src/d.rs", "struct Shared;"),
            ("xtask/src/e.rs", "struct Kind;"),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("vmm/src/c.rs and vmm/src/d.rs define `Shared`"));
        assert!(found[1].starts_with("mm/src/a.rs and devices/src/b.rs define `Slot`"));
    }

    #[test]
    fn a_type_with_a_schema_may_have_one_twin() {
        let wire = "#[derive(Debug, ToSchema)] pub struct ParkReport;";
        let twin = ("mm/src/park.rs", "pub struct ParkReport;");
        assert_eq!(found([twin, ("vmm/src/api/paging.rs", wire)]), [""; 0]);
        assert_eq!(found([twin, ("vmm/src/config/paging.rs", wire)]), [""; 0]);

        let no_schema = "#[derive(Debug)] pub struct ParkReport;";
        for second in [
            [("vmm/src/api/paging.rs", no_schema), twin],
            [("vmm/src/parking/mod.rs", wire), twin],
            [("vmm/src/api/paging.rs", wire), ("vmm/src/config/paging.rs", wire)],
        ] {
            assert_eq!(found(second).len(), 1, "{second:?}");
        }
        let third = ("vmm/src/parking/mod.rs", "struct ParkReport;");
        assert_eq!(found([("vmm/src/api/paging.rs", wire), twin, third]).len(), 1);
    }

    #[test]
    fn each_resource_has_its_description() {
        let text = "struct Description; type Machine = u8;";
        let api = [("vmm/src/api/a.rs", text), ("vmm/src/api/b.rs", text)];
        assert_eq!(found(api), [""; 0]);
        let elsewhere = [("vmm/src/arch/a.rs", text), ("vmm/src/control/b.rs", text)];
        assert_eq!(found(elsewhere).len(), 2);
    }
}
