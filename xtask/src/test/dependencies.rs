// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each package uses what it depends on, and each dependency of the workspace's table has a user.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::sources;
use crate::error::{Error, IoContext, Result, task_error};
use crate::{build, paths, run};

/// Dependencies that no source file names, with the reason.
const UNNAMED: [(&str, &str); 0] = [];

/// Looks for the name of each dependency in the sources of its package.
pub(crate) fn check() -> Result<()> {
    let metadata = run::capture(build::cargo().args([
        "metadata",
        "--locked",
        "--format-version",
        "1",
        "--no-deps",
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata)
        .map_err(|e| Error::Task(format!("cargo metadata gave no JSON: {e}")))?;
    let files = sources::read(&[".rs"])?;
    let root = paths::workspace();
    let mut faults = Vec::new();
    let mut used = BTreeSet::new();
    for package in array(&metadata, "packages") {
        let name = text(package, "name");
        let manifest = text(package, "manifest_path");
        let folder = manifest.trim_start_matches(&*root.to_string_lossy()).trim_start_matches('/');
        let folder = folder.trim_end_matches("Cargo.toml");
        // Another package may lie inside this one's folder.
        let others: Vec<_> = array(&metadata, "packages")
            .map(|other| text(other, "manifest_path").trim_end_matches("Cargo.toml"))
            .filter(|other| other.len() > manifest.trim_end_matches("Cargo.toml").len())
            .map(|other| other.trim_start_matches(&*root.to_string_lossy()).trim_start_matches('/'))
            .collect();
        let mine = files.iter().filter(|(path, _)| {
            path.starts_with(folder) && !others.iter().any(|other| path.starts_with(other))
        });
        let mine: Vec<_> = mine.map(|(path, text)| (&path[folder.len()..], &**text)).collect();
        for dependency in array(package, "dependencies") {
            let crate_name = text(dependency, "name");
            used.insert(crate_name.to_owned());
            let ident = dependency["rename"].as_str().unwrap_or(crate_name).replace('-', "_");
            // The library's name may differ from the package's: ours drop their prefix.
            let ident = ident.strip_prefix("ballast_").unwrap_or(&ident);
            let dev_only = dependency["kind"] == "dev";
            let names = |(path, text): &(&str, &str)| {
                (dev_only || path.starts_with("src/")) && contains_word(text, ident)
            };
            if !mine.iter().any(names) && !UNNAMED.iter().any(|(known, _)| *known == crate_name) {
                faults.push(format!("{name}: dependency {crate_name} is not used"));
            }
        }
    }
    for name in workspace_table()? {
        if !used.contains(&name) {
            faults.push(format!("Cargo.toml: no package depends on {name}"));
        }
    }
    if faults.is_empty() { Ok(()) } else { task_error(faults.join("\n  ")) }
}

fn array<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The names in the workspace's table of dependencies.
fn workspace_table() -> Result<Vec<String>> {
    let path = paths::workspace().join("Cargo.toml");
    let manifest = fs::read_to_string(&path).doing("reading", &path)?;
    let table: toml::Table = manifest
        .parse()
        .map_err(|e| Error::Task(format!("{} is not TOML: {e}", path.display())))?;
    let names = table["workspace"]["dependencies"].as_table().map(|table| table.keys().cloned());
    Ok(names.into_iter().flatten().collect())
}

/// Whether `word` stands in a line of `text` that is not a comment, not as part of a longer name.
fn contains_word(text: &str, word: &str) -> bool {
    let in_name = |c: char| c.is_alphanumeric() || c == '_';
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.match_indices(word).map(move |(at, _)| (line, at))).any(
        |(line, at)| {
            let (before, after) = (&line[..at], &line[at + word.len()..]);
            !before.ends_with(in_name) && !after.starts_with(in_name)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::contains_word;

    #[test]
    fn finds_whole_names_in_code_only() {
        assert!(contains_word("use serde::Serialize;", "serde"));
        assert!(contains_word("#[derive(serde::Serialize)]", "serde"));
        assert!(!contains_word("use serde_json::Value;", "serde"));
        assert!(!contains_word("// serde would do\n", "serde"));
    }
}
