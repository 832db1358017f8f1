// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! No Rust file is too long.

use super::sources;
use crate::error::{Result, task_error};

/// Most lines of a file, tests and comments included.
const MOST_LINES: usize = 400;

/// Checks all Rust files.
pub(crate) fn check() -> Result<()> {
    let faults = faults(&sources::read(&[".rs"])?);
    if faults.is_empty() { Ok(()) } else { task_error(faults.join("\n  ")) }
}

fn faults(files: &[(String, String)]) -> Vec<String> {
    let lengths = files.iter().map(|(path, text)| (path, text.lines().count()));
    lengths
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| {
            format!(
                "{path}: {lines} lines, more than {MOST_LINES}: move one of its jobs to a file of \
                 its own, or its tests to `tests.rs` beside it"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{MOST_LINES, faults};

    #[test]
    fn names_files_that_are_too_long() {
        let of = |name: &str, lines| (name.to_owned(), "// line\n".repeat(lines));
        let found = faults(&[of("a.rs", MOST_LINES), of("b.rs", MOST_LINES + 1)]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("b.rs: 401 lines"), "{found:?}");
    }
}
