// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `console`: the guest's serial console.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rules::{Check, Faults, socket_path};

/// The guest's serial console: `"tty"`, `"pty"`, `{"socket": PATH}`, `{"file": PATH}` or `"null"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleConfig {
    /// Standard input and output, in raw mode if they are a terminal.
    #[default]
    Tty,
    /// A pseudo-terminal, whose path is printed at the start.
    Pty,
    /// A Unix socket with mode 0600: up to eight clients see the output and can type.
    #[schema(value_type = String)]
    Socket(PathBuf),
    /// Output to this file, created or appended to; no input. At 64 MiB the file is renamed to
    /// `PATH.1`, replacing the previous one, and a new file is started.
    #[schema(value_type = String)]
    File(PathBuf),
    /// Output is discarded; no input.
    Null,
}

/// The rules of this section.
pub(super) fn rules(check: &Check<'_, ConsoleConfig>, faults: &mut Faults) {
    if let ConsoleConfig::File(path) = check.section
        && path.as_os_str().is_empty()
    {
        faults.add("console.file", "empty: give the path of a file");
    }
    if let ConsoleConfig::Socket(path) = check.section {
        socket_path("console.socket", path, faults);
    }
}
