// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Text from outside in a message of one line: names of files may contain anything but NUL and
//! slashes, and a client may send those too.

use std::borrow::Cow;

/// `text` with control characters escaped, so that it is one line and does nothing to a terminal.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line.into()
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(one_line("a b\u{e9}"), "a b\u{e9}");
        assert_eq!(one_line("a\nb\0\x1b[31m"), "a\\nb\\u{0}\\u{1b}[31m");
    }
}
