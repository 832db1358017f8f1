// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Licences and duplicate versions of our dependencies, by the rules of `deny.toml`. cargo-deny
//! checks the same and advisories as well, where it is installed.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::error::{Error, IoContext, Result, task_error};
use crate::{build, paths, run};

/// The rules that we read of `deny.toml`.
#[derive(Debug)]
struct Rules {
    allowed: Vec<String>,
    duplicates: Vec<String>,
}

/// Checks all packages that the workspace is built from.
pub(crate) fn check() -> Result<()> {
    if run::in_path("cargo-deny") {
        return run::show(build::cargo().args(["deny", "check"]));
    }
    eprintln!("  cargo-deny is not installed: licences and duplicates only, no advisories");
    let rules = Rules::read()?;
    let metadata = run::capture(
        build::cargo()
            .args(["metadata", "--locked", "--format-version", "1"])
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"]),
    )?;
    let metadata: Value = serde_json::from_str(&metadata)
        .map_err(|e| Error::Task(format!("cargo metadata gave no JSON: {e}")))?;
    let mut faults = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let field = |name: &str| package[name].as_str().unwrap_or_default();
        let (name, version, licence) = (field("name"), field("version"), field("license"));
        versions.entry(name).or_default().push(version);
        match permits(licence, &rules.allowed) {
            Some(true) => {}
            Some(false) => {
                faults.push(format!("{name} {version}: licence {licence:?} is not allowed"));
            }
            None => faults.push(format!("{name} {version}: licence {licence:?} cannot be read")),
        }
    }
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        if !rules.duplicates.iter().any(|skipped| skipped == name) {
            faults.push(format!("{name}: several versions ({})", versions.join(", ")));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    task_error(format!("against deny.toml:\n  {}", faults.join("\n  ")))
}

impl Rules {
    fn read() -> Result<Self> {
        let path = paths::workspace().join("deny.toml");
        let text = fs::read_to_string(&path).doing("reading", &path)?;
        let table: toml::Table = text
            .parse()
            .map_err(|e| Error::Task(format!("{} is not TOML: {e}", path.display())))?;
        let strings = |section: &str, key: &str| -> Vec<String> {
            let list = table.get(section).and_then(|section| section.get(key));
            let list = list.and_then(toml::Value::as_array).into_iter().flatten();
            // An entry is a name, or a table with the crate's name and a reason.
            list.filter_map(|entry| entry.as_str().or_else(|| entry.get("crate")?.as_str()))
                .map(str::to_owned)
                .collect()
        };
        Ok(Self { allowed: strings("licenses", "allow"), duplicates: strings("bans", "skip") })
    }
}

/// Whether a licence expression (SPDX, or the old form with a slash for OR) can be met with
/// allowed licences alone; `None` if it is no expression.
fn permits(expression: &str, allowed: &[String]) -> Option<bool> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let verdict = any_of(&mut words, allowed)?;
    words.next().is_none().then_some(verdict)
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let mut verdict = all_of(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        verdict |= all_of(words, allowed)?;
    }
    Some(verdict)
}

fn all_of(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let mut verdict = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        verdict &= one(words, allowed)?;
    }
    Some(verdict)
}

fn one(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    if words.next_if_eq(&"(").is_some() {
        let verdict = any_of(words, allowed)?;
        return (words.next()? == ")").then_some(verdict);
    }
    let licence = words.next().filter(|word| !["OR", "AND", "WITH", ")"].contains(word))?;
    // An exception only adds permissions.
    if words.next_if_eq(&"WITH").is_some() {
        words.next()?;
    }
    Some(allowed.iter().any(|name| name == licence))
}

#[cfg(test)]
mod tests {
    use super::permits;

    #[test]
    fn reads_licence_expressions() {
        let allowed = ["MIT".to_owned(), "Unicode-3.0".to_owned()];
        let permits = |expression| permits(expression, &allowed);
        assert_eq!(permits("MIT"), Some(true));
        assert_eq!(permits("GPL-2.0-only"), Some(false));
        assert_eq!(permits("GPL-2.0-only OR MIT"), Some(true));
        assert_eq!(permits("Apache-2.0/MIT"), Some(true));
        assert_eq!(permits("Apache-2.0 AND MIT"), Some(false));
        assert_eq!(permits("(Apache-2.0 OR MIT) AND Unicode-3.0"), Some(true));
        assert_eq!(permits("Apache-2.0 WITH LLVM-exception OR MIT"), Some(true));
        assert_eq!(permits(""), None);
        assert_eq!(permits("(MIT"), None);
        assert_eq!(permits("MIT MIT"), None);
    }
}
