// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requested configuration, and whether Kconfig accepted it: it silently drops a symbol with
//! unmet dependencies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result, task_error};

/// The fragments to be merged over `tinyconfig`, in order.
#[derive(Debug)]
pub(crate) struct Wanted {
    fragments: Vec<PathBuf>,
    text: String,
}

impl Wanted {
    /// Reads the fragments called `names`, each laid over those before it.
    pub(crate) fn read(folder: &Path, names: &[&str]) -> Result<Self> {
        let fragments: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
        let mut text = String::new();
        for fragment in &fragments {
            text += &fs::read_to_string(fragment).doing("reading", fragment)?;
            text.push('\n');
        }
        Ok(Self { fragments, text })
    }

    /// The fragments' paths.
    pub(crate) fn fragments(&self) -> &[PathBuf] {
        &self.fragments
    }

    /// The identity of this configuration.
    pub(crate) fn identity(&self) -> String {
        self.text.clone()
    }

    /// Compares with the final `.config`; the error lists every symbol that came out otherwise.
    pub(crate) fn check(&self, config: &Path) -> Result<()> {
        let text = fs::read_to_string(config).doing("reading", config)?;
        let faults = differences(&self.text, &text);
        if faults.is_empty() {
            return Ok(());
        }
        task_error(format!(
            "the kernel's configuration is not what guest-kernel/configs asks for (is a \
             dependency missing, or a symbol gone?):\n  {}",
            faults.join("\n  ")
        ))
    }
}

fn differences(wanted: &str, taken: &str) -> Vec<String> {
    let (wanted, taken) = (symbols(wanted), symbols(taken));
    let mut faults = Vec::new();
    for (symbol, value) in wanted {
        let got = taken.get(symbol).copied().unwrap_or("n");
        if got != value {
            faults.push(format!("{symbol}: wanted {value}, got {got}"));
        }
    }
    faults
}

/// Symbol to value; "is not set" is `n`. A later line replaces an earlier one.
fn symbols(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            if let Some(rest) = line.strip_prefix("# ") {
                let symbol = rest.strip_suffix(" is not set")?;
                return symbol.starts_with("CONFIG_").then_some((symbol, "n"));
            }
            line.split_once('=').filter(|(symbol, _)| symbol.starts_with("CONFIG_"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::differences;

    #[test]
    fn a_symbol_that_was_not_taken_is_named() {
        let wanted = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=n\n# words\n";
        let taken = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n";
        assert_eq!(
            differences(wanted, taken),
            ["CONFIG_B: wanted y, got n", "CONFIG_C: wanted n, got y"]
        );
    }

    #[test]
    fn the_last_fragment_wins() {
        assert_eq!(differences("CONFIG_A=n\nCONFIG_A=y\n", "CONFIG_A=y\n"), Vec::<String>::new());
    }
}
