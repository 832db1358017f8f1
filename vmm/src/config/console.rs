// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `console`: where the guest's serial console goes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    /// Nowhere; no input.
    Null,
}
