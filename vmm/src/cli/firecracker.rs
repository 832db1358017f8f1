// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Firecracker's flags, for scripts and libraries that start it.
//!
//! Flags without a meaning here are accepted, and logged unless the jailer passes them at every
//! start. Where ignoring a flag would break a promise it is refused.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::error::CliError;
use super::values::read_metadata;
use crate::api::server::DEFAULT_MAX_PAYLOAD_BYTES;
use crate::config::{LogLevel, LoggerConfig, MetricsConfig, VmConfig};
use crate::host::files::open_regular;
use crate::launch::{DEFAULT_ID, Launch};
use crate::mode::StartMode;

/// Accepts Firecracker's flags and serves its API.
#[derive(Debug, Parser)]
#[command(name = "firecracker", disable_version_flag = true)]
pub(super) struct FirecrackerArgs {
    /// Print versions and exit
    #[arg(long, short = 'V')]
    pub(super) version: bool,
    /// Serve the API on this Unix socket
    #[arg(long, value_name = "PATH", default_value = "/run/firecracker.socket")]
    api_sock: PathBuf,
    /// Name of this machine: letters, digits and hyphens
    #[arg(long, value_name = "ID", default_value = DEFAULT_ID)]
    id: String,
    /// Configuration file; the machine starts immediately
    #[arg(long, value_name = "PATH")]
    config_file: Option<PathBuf>,
    /// Serve no API
    #[arg(long, requires = "config_file")]
    no_api: bool,
    /// Log to this file or FIFO
    #[arg(long, value_name = "PATH")]
    log_path: Option<PathBuf>,
    /// Log level
    #[arg(long, value_name = "LEVEL")]
    level: Option<String>,
    /// Log only messages from this module
    #[arg(long, value_name = "PATH")]
    module: Option<String>,
    /// Include the level in each log line
    #[arg(long)]
    show_level: bool,
    /// Include the source location in each log line
    #[arg(long)]
    show_log_origin: bool,
    /// Write metrics to this file or FIFO
    #[arg(long, value_name = "PATH")]
    metrics_path: Option<PathBuf>,
    /// Maximum size of a request body, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_PAYLOAD_BYTES)]
    http_api_max_payload_size: usize,
    /// Maximum size of the metadata, in bytes; defaults to --http-api-max-payload-size
    #[arg(long, value_name = "BYTES")]
    mmds_size_limit: Option<usize>,
    /// Metadata for the guest, a JSON file
    #[arg(long, value_name = "PATH")]
    metadata: Option<PathBuf>,
    /// Accepted without effect: there are no seccomp filters yet
    #[arg(long, conflicts_with = "seccomp_filter")]
    no_seccomp: bool,

    /// Accepted without effect: there are no seccomp filters yet
    #[arg(long, value_name = "PATH")]
    seccomp_filter: Option<PathBuf>,
    /// Accepted without effect: devices use virtio-mmio
    #[arg(long)]
    enable_pci: bool,
    /// Accepted without effect: there is no boot timer device
    #[arg(long)]
    boot_timer: bool,
    /// Start time of this process on the monotonic clock, for the metrics
    #[arg(long, value_name = "US")]
    start_time_us: Option<u64>,
    /// Accepted
    #[arg(long, value_name = "US")]
    start_time_cpu_us: Option<u64>,
    /// Accepted
    #[arg(long, value_name = "US")]
    parent_cpu_time_us: Option<u64>,
    /// Rejected: snapshots are not supported
    #[arg(long)]
    snapshot_version: bool,
    /// Rejected: snapshots are not supported
    #[arg(long, value_name = "PATH")]
    describe_snapshot: Option<PathBuf>,
}

/// A level, case-insensitive. Not parsed with the other arguments, as an invalid level has its own
/// exit code.
fn level(name: &str) -> Result<LogLevel, CliError> {
    LogLevel::from_str(name, true).map_err(|_| CliError::Level(name.to_owned()))
}

impl FirecrackerArgs {
    pub(super) fn into_launch(self) -> Result<Launch, CliError> {
        if self.snapshot_version {
            return Err(CliError::NotOffered("snapshots: there is no format version to print"));
        }
        if self.describe_snapshot.is_some() {
            return Err(CliError::NotOffered("snapshots: there is no file format to describe"));
        }
        let level = self.level.as_deref().map(level).transpose()?;
        if let Some(path) = &self.seccomp_filter {
            open_regular(path).map_err(|cause| CliError::File { path: path.clone(), cause })?;
        }
        let config = self.config_file.as_deref().map(VmConfig::read).transpose()?;
        let ignored = [
            ("--seccomp-filter", self.seccomp_filter.is_some()),
            ("--enable-pci", self.enable_pci),
        ];
        Ok(Launch {
            id: self.id,
            config,
            logger: LoggerConfig {
                log_path: self.log_path,
                level,
                show_level: self.show_level.then_some(true),
                show_log_origin: self.show_log_origin.then_some(true),
                module: self.module,
            },
            api_sock: (!self.no_api).then_some(self.api_sock),
            max_payload_bytes: self.http_api_max_payload_size,
            count_cpu_time: false,
            metadata: self.metadata.as_deref().map(read_metadata).transpose()?,
            mmds_size_limit: self.mmds_size_limit,
            seccomp: !self.no_seccomp,
            metrics: self.metrics_path.map(MetricsConfig::to_file),
            mode: StartMode::Firecracker,
            start_time_us: self.start_time_us,
            ignored: ignored.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect(),
        })
    }
}
