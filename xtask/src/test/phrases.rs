// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Plain English: no file contains a phrase of `phrases.txt`.

use super::sources;
use crate::error::{Result, task_error};

/// Files with text for people: sources, documents, kernel patches, configuration and scripts.
const SUFFIXES: [&str; 9] =
    [".rs", ".md", ".patch", ".txt", ".toml", ".yml", ".py", ".config", "openapi.json"];

/// The rejected phrases, one per line; lines that start with `#` are comments.
const PHRASES: &str = include_str!("phrases.txt");

/// Files that quote phrases.
const EXEMPT: [&str; 2] = ["xtask/src/test/phrases.txt", "xtask/src/test/phrases.rs"];

/// Checks all files. Of a kernel patch only the message is checked, as its diff is kernel code.
pub(crate) fn check() -> Result<()> {
    let files = sources::read(&SUFFIXES)?;
    let checked = files.iter().filter(|(path, _)| !EXEMPT.contains(&&**path));
    let faults: Vec<String> = checked.flat_map(|(path, text)| faults(path, text)).collect();
    if faults.is_empty() { Ok(()) } else { task_error(faults.join("\n  ")) }
}

/// A word, in lower case, with the number of its line.
type Word = (String, usize);

fn faults(path: &str, text: &str) -> Vec<String> {
    let text = match text.find("\n---\n") {
        Some(end) if path.ends_with(".patch") => &text[..end],
        _ => text,
    };
    let words = words(text);
    let phrases = PHRASES.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut found = Vec::new();
    for phrase in phrases {
        let wanted: Vec<String> = self::words(phrase).into_iter().map(|(word, _)| word).collect();
        let matches =
            words.windows(wanted.len()).filter(|run| run.iter().map(|(word, _)| word).eq(&wanted));
        found.extend(matches.map(|run| {
            format!("{path}:{}: \"{phrase}\": say who does what, in plain English", run[0].1)
        }));
    }
    found
}

/// The words of `text`. Punctuation that ends a clause is a word too, so that no phrase spans it;
/// a line break, with the marker of a comment after it, separates words like a space.
fn words(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start().trim_start_matches(['/', '!', '#', '*', '>', '+']);
        let mut word = String::new();
        for c in line.chars().chain([' ']) {
            if c.is_alphanumeric() || matches!(c, '_' | '\'' | '-') {
                word.extend(c.to_lowercase());
                continue;
            }
            if !word.is_empty() {
                words.push((std::mem::take(&mut word), number));
            }
            if !c.is_whitespace() && c != '\\' {
                words.push((c.to_string(), number));
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::faults;

    #[test]
    fn finds_phrases_across_line_breaks_and_in_any_case() {
        let text = "//! Waits for\n//! the guest In\n//! Vain.\n";
        assert_eq!(faults("a.rs", text).len(), 1);
        assert!(faults("a.rs", text)[0].starts_with("a.rs:2: \"in vain\""));
    }

    #[test]
    fn ignores_other_words_punctuation_and_the_diff_of_a_patch() {
        assert!(faults("a.rs", "// in vain_value; in, vain; behaved had\n").is_empty());
        let patch = "A message.\n---\n+/* in vain */\n";
        assert!(faults("0001.patch", patch).is_empty());
        assert_eq!(faults("0001.md", patch).len(), 1);
    }
}
