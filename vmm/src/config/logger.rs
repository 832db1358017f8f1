// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `logger`: the monitor's log.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// The monitor's log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoggerConfig {
    /// File or FIFO to write to; standard error by default.
    #[schema(value_type = Option<String>)]
    pub log_path: Option<PathBuf>,
    /// Lowest level that is logged.
    pub level: Option<LogLevel>,
    /// Whether each line includes its level. Accepted without effect: it always does.
    pub show_level: Option<bool>,
    /// Whether each line includes its source location.
    pub show_log_origin: Option<bool>,
    /// Log only messages from the module with this path.
    pub module: Option<String>,
}

/// Log level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema, clap::ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What looks wrong.
    #[value(alias = "warn")]
    #[default]
    Warning,
    /// Information for operators.
    Info,
    /// Information for debugging.
    Debug,
    /// Everything.
    Trace,
}

impl<'de> Deserialize<'de> for LogLevel {
    /// In any case of letters, as Firecracker has it.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        <Self as clap::ValueEnum>::from_str(&name, true).map_err(|_| {
            serde::de::Error::unknown_variant(
                &name,
                &["Off", "Error", "Warning", "Info", "Debug", "Trace"],
            )
        })
    }
}
