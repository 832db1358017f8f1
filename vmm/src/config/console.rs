// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `console`: where the guest's serial console goes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Faults;
use super::rules::Check;

/// Where the guest's serial console goes: `"tty"`, `{"file": PATH}` or `"null"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleConfig {
    /// Standard input and output, in raw mode if that is a terminal.
    #[default]
    Tty,
    /// Output to this file, created or appended to; no input.
    #[schema(value_type = String)]
    File(PathBuf),
    /// Output is discarded; no input.
    Null,
}

/// The rules of this section.
pub(super) fn rules(check: &Check<'_>, faults: &mut Faults) {
    if let ConsoleConfig::File(path) = &check.config.console
        && path.as_os_str().is_empty()
    {
        faults.add("console.file", "empty: give the path of a file");
    }
}
