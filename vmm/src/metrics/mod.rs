// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The metrics file: one JSON object per line, as in Firecracker.
//!
//! A snapshot of all counters is a tree of named groups. A line contains differences since the
//! previous line, as programs that sum up Firecracker's lines expect; `GET /metrics` returns the
//! totals.
//!
//! - `groups.rs`: Firecracker's groups, and which values are gauges
//! - `sums.rs`: groups put together

mod groups;
mod sums;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mm::units::SaturatingInto;
use serde_json::{Map, Value};

use crate::config::MetricsConfig;
use crate::host::descriptor::Descriptor;
use crate::host::files::open_lines;
use crate::host::ring::Ring;
pub use groups::completed;

/// Interval between automatic lines.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Bytes of lines that may wait for their reader.
const CAPACITY: usize = 256 << 10;

/// Metrics cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("metrics file {}: {cause}", path.display())]
pub struct MetricsError {
    path: PathBuf,
    cause: io::Error,
}

/// Where metrics go.
#[derive(Debug)]
pub struct MetricsFile {
    ring: Ring,
    config: MetricsConfig,
    id: String,
    last: Value,
}

impl MetricsFile {
    /// Opens the file or FIFO.
    ///
    /// # Errors
    ///
    /// What open(2) says.
    pub fn open(config: MetricsConfig, id: &str) -> Result<Self, MetricsError> {
        let file = open_lines(&config.metrics_path)
            .map_err(|cause| MetricsError { path: config.metrics_path.clone(), cause })?;
        let ring = Ring::new("metrics", CAPACITY, Box::new(Descriptor(file.into())));
        Ok(Self { ring, config, id: id.to_owned(), last: Value::Null })
    }

    /// Bytes of lines that were dropped.
    pub fn lost_bytes(&self) -> u64 {
        self.ring.lost().bytes
    }

    /// Writes the difference between `totals` and the last line.
    ///
    /// # Errors
    ///
    /// The file's reader has not read for so long that there is no room for the line; it is lost.
    pub fn write(&mut self, totals: Value) -> Result<(), MetricsError> {
        let mut line = Map::new();
        line.insert("utc_timestamp_ms".into(), utc_ms().into());
        if self.config.emit_id {
            line.insert("id".into(), self.id.as_str().into());
        }
        for (name, value) in &self.config.properties {
            line.insert(name.clone(), value.as_str().into());
        }
        if let Value::Object(groups) = difference(&totals, &self.last, &mut Vec::new()) {
            line.extend(groups);
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        // A line is written entirely or dropped: the next one then includes its differences.
        if !self.ring.push(text.as_bytes()) {
            let cause = io::Error::other("the reader does not keep up: dropped a line");
            return Err(MetricsError { path: self.config.metrics_path.clone(), cause });
        }
        self.last = totals;
        Ok(())
    }
}

/// `now - before` for each number; gauges unchanged. New values count from 0.
fn difference<'a>(now: &'a Value, before: &Value, path: &mut Vec<&'a str>) -> Value {
    match now {
        Value::Object(fields) => {
            let mut differences = Map::new();
            for (name, value) in fields {
                path.push(name);
                differences.insert(name.clone(), difference(value, &before[name], path));
                path.pop();
            }
            differences.into()
        }
        Value::Number(number) => match number.as_u64() {
            Some(_) if groups::is_gauge(path) => now.clone(),
            Some(now) => now.saturating_sub(before.as_u64().unwrap_or(0)).into(),
            None => now.clone(),
        },
        other => other.clone(),
    }
}

fn utc_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().saturating_u64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_hold_differences() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics");
        let config = MetricsConfig {
            metrics_path: path.clone(),
            emit_id: true,
            properties: [("host".to_owned(), "h".to_owned())].into(),
        };
        let mut metrics = MetricsFile::open(config, "vm1").unwrap();
        metrics.write(json!({"balloon": {"inflate_count": 3}})).unwrap();
        metrics.write(json!({"balloon": {"inflate_count": 5}, "vcpu": {"exits": 1}})).unwrap();
        drop(metrics);
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["id"], "vm1");
        assert_eq!(lines[0]["host"], "h");
        assert!(lines[0]["utc_timestamp_ms"].as_u64().unwrap() > 1_600_000_000_000);
        assert_eq!(lines[0]["balloon"]["inflate_count"], 3);
        assert_eq!(lines[1]["balloon"]["inflate_count"], 2);
        assert_eq!(lines[1]["vcpu"]["exits"], 1);
    }

    #[test]
    fn a_path_that_cannot_be_had_is_named() {
        let config = MetricsConfig {
            metrics_path: "/no/such/folder/metrics".into(),
            emit_id: false,
            properties: Default::default(),
        };
        let error = MetricsFile::open(config, "").unwrap_err().to_string();
        assert!(error.starts_with("metrics file /no/such/folder/metrics: "), "{error}");
    }
}
