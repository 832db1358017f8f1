// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Documents name the patches of the guest kernel by the numbers that the series has.

use std::collections::BTreeSet;

use super::sources;
use crate::error::{Result, task_error};
use crate::kernel::Series;
use crate::paths;

/// The document that describes each patch under a heading of its own.
const DOCUMENT: &str = "guest-kernel/README.md";

/// Documents with numbers of their own.
const NUMBERED: &str = "docs/decisions/";

/// Compares numbers in Markdown files with `guest-kernel/series`.
pub(crate) fn check() -> Result<()> {
    let series = Series::read(&paths::workspace().join("guest-kernel"))?;
    let numbers: BTreeSet<String> = series
        .paths()
        .filter_map(|path| Some(path.file_name()?.to_str()?.get(..4)?.to_owned()))
        .collect();
    let faults = faults(&sources::read(&[".md"])?, &numbers);
    if faults.is_empty() { Ok(()) } else { task_error(faults.join("\n  ")) }
}

fn faults(documents: &[(String, String)], series: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, text) in documents.iter().filter(|(name, _)| !name.starts_with(NUMBERED)) {
        for number in patch_numbers(text).filter(|number| !series.contains(*number)) {
            faults.push(format!("{name}: there is no patch {number} in the series"));
        }
    }
    let described = documents.iter().find(|(name, _)| name == DOCUMENT).map(|(_, text)| &**text);
    let described: BTreeSet<_> = patch_numbers(described.unwrap_or_default()).collect();
    for number in series.iter().filter(|number| !described.contains(&***number)) {
        faults.push(format!("{DOCUMENT}: patch {number} is not described"));
    }
    faults
}

/// Numbers of patches: four digits that begin with 00, and are no part of anything longer.
fn patch_numbers(text: &str) -> impl Iterator<Item = &str> {
    let no_digit = |c: char| !c.is_alphanumeric() && !['_', '.', ':', '+', '#'].contains(&c);
    text.split(no_digit).filter(|word| {
        word.len() == 4 && word.starts_with("00") && word.bytes().all(|b| b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patch_numbers_have_four_digits() {
        let text = "Only where 0002 (see 0004-virtio.patch) can; mode 0600, 0x0003, 00:01, 2003.";
        assert_eq!(patch_numbers(text).collect::<Vec<_>>(), ["0002", "0004"]);
    }

    #[test]
    fn numbers_and_series_must_agree() {
        let series = BTreeSet::from(["0001".to_owned(), "0002".to_owned()]);
        let document = |text: &str| [(DOCUMENT.to_owned(), text.to_owned())];
        assert!(faults(&document("**0001, a** and **0002, b**"), &series).is_empty());
        let found = faults(&document("**0001, a** and **0003, b**"), &series);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
