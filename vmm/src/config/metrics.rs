// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `metrics`: where counters are written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where metrics are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetricsConfig {
    /// File or FIFO to write to: one JSON object per line.
    #[schema(value_type = String)]
    pub metrics_path: PathBuf,
    /// Whether each line carries the instance's id.
    #[serde(default)]
    pub emit_id: bool,
    /// Strings that are added to each line unchanged.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

impl MetricsConfig {
    /// Plain lines to the file at `metrics_path`.
    pub fn to_file(metrics_path: PathBuf) -> Self {
        Self { metrics_path, emit_id: false, properties: BTreeMap::new() }
    }
}
