// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ways to compress pages, as they are written: `lz4`, `zstd`, `zstd:3`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A compression method for pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PageCodec {
    /// LZ4: fastest.
    #[default]
    Lz4,
    /// Zstandard of that level, 1 to 19: smaller and slower.
    Zstd(u8),
}

impl PageCodec {
    const FIRST_LEVEL: u8 = 1;
    const LAST_LEVEL: u8 = 19;
}

impl fmt::Display for PageCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lz4 => write!(f, "lz4"),
            Self::Zstd(Self::FIRST_LEVEL) => write!(f, "zstd"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for PageCodec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level = match text {
            "lz4" => return Ok(Self::Lz4),
            "zstd" => Some(Self::FIRST_LEVEL),
            _ => text.strip_prefix("zstd:").and_then(|level| level.parse().ok()),
        };
        match level {
            Some(level @ Self::FIRST_LEVEL..=Self::LAST_LEVEL) => Ok(Self::Zstd(level)),
            _ => Err(format!("codec `{text}`: give lz4, zstd, or zstd:1 to zstd:19")),
        }
    }
}

impl TryFrom<String> for PageCodec {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PageCodec> for String {
    fn from(codec: PageCodec) -> Self {
        codec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_are_read_as_they_are_written() {
        for (text, codec) in [
            ("lz4", PageCodec::Lz4),
            ("zstd", PageCodec::Zstd(1)),
            ("zstd:19", PageCodec::Zstd(19)),
        ] {
            assert_eq!(text.parse(), Ok(codec));
            assert_eq!(codec.to_string(), text);
        }
        for wrong in ["", "lz4:1", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "LZ4"] {
            assert!(
                wrong.parse::<PageCodec>().is_err_and(|why| why.contains("give lz4")),
                "{wrong}"
            );
        }
    }
}
