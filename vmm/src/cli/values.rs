// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Values of arguments: sizes, metadata files, and lists like `512M,backing=thp,cma=64M`.

use std::path::Path;
use std::str::FromStr;

use serde_json::Value;

use super::error::CliError;
use crate::config::from_slice;
use crate::host::files::read_text;

/// Largest file of metadata that is read, in bytes; `--mmds-size-limit` may allow less.
const MAX_METADATA_BYTES: usize = 16 << 20;

/// Reads a JSON file of metadata.
pub(super) fn read_metadata(path: &Path) -> Result<Value, CliError> {
    let text = read_text(path, MAX_METADATA_BYTES)
        .map_err(|cause| CliError::File { path: path.to_owned(), cause })?;
    from_slice(&text).map_err(|cause| CliError::Json { path: path.to_owned(), cause })
}

/// A size in whole MiB: `64M`, `2G`, `2GiB`, `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SizeMib(pub(super) u64);

impl FromStr for SizeMib {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Nothing is nothing in any unit.
        if text == "0" {
            return Ok(Self(0));
        }
        let wrong = || format!("invalid size `{text}`: give a number and a unit, as in 512M or 2G");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.to_ascii_lowercase();
        let mib_per_unit: u64 = match unit.strip_suffix("ib").unwrap_or(&unit) {
            "m" => 1,
            "g" => 1 << 10,
            "t" => 1 << 20,
            _ => return Err(wrong()),
        };
        number.checked_mul(mib_per_unit).map(Self).ok_or_else(|| format!("`{text}` is too large"))
    }
}

impl SizeMib {
    /// As the 32 bits that the balloon's fields have.
    pub(super) fn as_u32(self) -> Result<u32, String> {
        u32::try_from(self.0).map_err(|_| format!("{} MiB is too large", self.0))
    }
}

/// Two numbers of pixels: `1280x720`.
pub(super) fn width_and_height(text: &str) -> Result<(u32, u32), String> {
    text.split_once('x')
        .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)))
        .ok_or_else(|| format!("invalid mode `{text}`: give WIDTHxHEIGHT, as in 1280x720"))
}

/// Parser for `VALUE,key=value,flag`. Keys are removed one by one; [`finish`](Self::finish)
/// rejects those that are not known.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    pairs: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> Pieces<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, String> {
        let mut pairs: Vec<(&str, Option<&str>)> = Vec::new();
        for piece in text.split(',') {
            let (key, value) = match piece.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (piece, None),
            };
            if key.is_empty() {
                return Err(format!("`{text}` has an empty element"));
            }
            if pairs.iter().any(|&(other, _)| other == key) {
                return Err(format!("`{key}` is given twice"));
            }
            pairs.push((key, value));
        }
        Ok(Self { pairs })
    }

    /// The first piece, which has no key.
    pub(super) fn take_first(&mut self) -> Result<&'a str, String> {
        match self.pairs.remove(0) {
            (value, None) => Ok(value),
            (key, Some(_)) => Err(format!("`{key}=` must follow the value: give the value first")),
        }
    }

    /// `key=value`, if it is there.
    pub(super) fn take<T: FromStr<Err: ToString>>(
        &mut self,
        key: &str,
    ) -> Result<Option<T>, String> {
        let Some(at) = self.pairs.iter().position(|&(other, _)| other == key) else {
            return Ok(None);
        };
        match self.pairs.remove(at).1 {
            None => Err(format!("`{key}` needs a value: {key}=…")),
            Some(value) => match value.parse() {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(format!("{key}: {}", error.to_string())),
            },
        }
    }

    /// `key` without a value, if it is there.
    pub(super) fn take_flag(&mut self, key: &str) -> Result<bool, String> {
        let Some(at) = self.pairs.iter().position(|&(other, _)| other == key) else {
            return Ok(false);
        };
        match self.pairs.remove(at).1 {
            None => Ok(true),
            Some(_) => Err(format!("`{key}` takes no value")),
        }
    }

    /// Fails if anything is left; `known` lists the valid keys.
    pub(super) fn finish(self, known: &str) -> Result<(), String> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("unknown key `{key}`: valid keys are {known}")),
        }
    }
}

/// A guest-physical address, in hexadecimal with `0x` or in decimal.
pub(super) fn address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("invalid address `{text}`: give a number, as in 0x40000000"))
}
