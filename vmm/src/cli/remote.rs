// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Subcommands that ask a running monitor over its API.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::client::{get_bytes, request};
use super::compaction::{CompactArgs, MapArgs};
use super::parking::{ParkArgs, UnparkArgs};
use super::values::{SizeMib, width_and_height};
use super::{CliError, version_text};
use crate::api::gpu::Mode;

/// Which monitor.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// API socket of the running monitor
    #[arg(long, value_name = "PATH", env = "BALLAST_API_SOCK")]
    api_sock: PathBuf,
}

impl Target {
    pub(super) fn ask(
        &self,
        method: Method,
        resource: &str,
        body: Option<&Value>,
    ) -> Result<Value, CliError> {
        Ok(request(&self.api_sock, method, resource, body)?)
    }

    pub(super) fn get(&self, resource: &str) -> Result<Value, CliError> {
        self.ask(Method::GET, resource, None)
    }

    pub(super) fn put(&self, resource: &str, body: &Value) -> Result<Value, CliError> {
        self.ask(Method::PUT, resource, Some(body))
    }

    /// Asks for something that is no JSON.
    pub(super) fn get_bytes(
        &self,
        resource: &str,
        accept: &'static str,
    ) -> Result<bytes::Bytes, CliError> {
        Ok(get_bytes(&self.api_sock, resource, accept)?)
    }

    fn patch(&self, resource: &str, body: &Value) -> Result<(), CliError> {
        self.ask(Method::PATCH, resource, Some(body))?;
        Ok(())
    }

    pub(super) fn pause(&self) -> Result<(), CliError> {
        self.patch("/vm", &json!({"state": "Paused"}))
    }

    pub(super) fn resume(&self) -> Result<(), CliError> {
        self.patch("/vm", &json!({"state": "Resumed"}))
    }

    pub(super) fn metrics(&self, out: &mut impl Write) -> Result<(), CliError> {
        print_json(out, &self.get("/metrics")?)
    }
}

/// Perhaps a monitor.
#[derive(Debug, Args)]
pub(super) struct MaybeTarget {
    /// API socket of a running monitor
    #[arg(long, value_name = "PATH", env = "BALLAST_API_SOCK")]
    api_sock: Option<PathBuf>,
}

impl MaybeTarget {
    pub(super) fn version(self, out: &mut impl Write) -> Result<(), CliError> {
        write!(out, "{}", version_text())?;
        if let Some(api_sock) = self.api_sock {
            let versions = Target { api_sock }.get("/version")?;
            let running = versions["ballast_version"].as_str().unwrap_or("unknown");
            writeln!(out, "running: Ballast v{running}")?;
        }
        Ok(())
    }
}

/// `ballast shutdown`.
#[derive(Debug, Args)]
pub(super) struct Shutdown {
    #[command(flatten)]
    target: Target,
    /// Do not ask the guest: end the machine at once
    #[arg(long)]
    now: bool,
}

impl Shutdown {
    pub(super) fn run(&self) -> Result<(), CliError> {
        let action = if self.now { "InstanceStop" } else { "SendCtrlAltDel" };
        self.target.put("/actions", &json!({"action_type": action}))?;
        Ok(())
    }
}

/// `ballast balloon …`.
#[derive(Debug, Subcommand)]
pub(super) enum Balloon {
    /// Give the balloon a new target size
    Set {
        /// The size, as in 512M
        size: SizeMib,
        #[command(flatten)]
        target: Target,
    },
    /// Print target and settings
    Show(Target),
    /// Print what device and guest know, as JSON
    Stats(Target),
}

impl Balloon {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), CliError> {
        match self {
            Self::Set { size, target } => {
                let amount_mib = size.as_u32().map_err(CliError::Usage)?;
                target.patch("/balloon", &json!({"amount_mib": amount_mib}))
            }
            Self::Show(target) => print_json(out, &target.get("/balloon")?),
            Self::Stats(target) => print_json(out, &target.get("/balloon/statistics")?),
        }
    }
}

/// `ballast gpu …`.
#[derive(Debug, Subcommand)]
pub(super) enum Gpu {
    /// Print scanouts, resources and counters, as JSON
    Show(Target),
    /// Save what a scanout shows as a PNG file
    Screenshot {
        /// The file; `-` is standard output
        file: PathBuf,
        /// Number of the scanout
        #[arg(long, value_name = "N", default_value_t = 0)]
        scanout: u32,
        #[command(flatten)]
        target: Target,
    },
    /// Offer the guest another mode, or unplug a scanout
    Mode {
        /// WIDTHxHEIGHT, or off
        mode: ModeOrOff,
        /// Number of the scanout
        #[arg(long, value_name = "N", default_value_t = 0)]
        scanout: u32,
        #[command(flatten)]
        target: Target,
    },
}

impl Gpu {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), CliError> {
        match self {
            Self::Show(target) => print_json(out, &target.get("/gpu")?),
            Self::Screenshot { file, scanout, target } => {
                let resource = format!("/gpu/scanouts/{scanout}");
                let png = target.get_bytes(&resource, "image/png")?;
                if file == Path::new("-") {
                    out.write_all(&png)?;
                    return Ok(());
                }
                save(&file, &png)
            }
            Self::Mode { mode: ModeOrOff(mode), scanout, target } => {
                target.patch(&format!("/gpu/scanouts/{scanout}"), &json!({"mode": mode}))
            }
        }
    }
}

/// `1280x720` or `off`.
#[derive(Debug, Clone)]
pub(super) struct ModeOrOff(Option<Mode>);

impl FromStr for ModeOrOff {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let (width_px, height_px) = width_and_height(text)?;
        Ok(Self(Some(Mode { width_px, height_px })))
    }
}

/// `ballast memory …`.
#[derive(Debug, Subcommand)]
pub(super) enum Memory {
    /// Print what guest memory is made of on the host
    Show(Target),
    /// Print how the CMA region is used and backed
    Cma(Target),
    /// Show every block of 2 MiB: on the terminal, or as a picture
    Map(MapArgs),
    /// Give back what is held for nothing, and make the rest of huge pages
    Compact(CompactArgs),
    /// Compress the guest's memory into the monitor's pool; the guest has it back when it touches it
    Park(ParkArgs),
    /// Bring parked memory back
    Unpark(UnparkArgs),
    /// Print how much is parked, what it takes, and what the pager has done, as JSON
    Stats(Target),
    /// Have the guest empty blocks of 2 MiB and give them up
    Evacuate {
        /// Guest-physical address of the first block, in hexadecimal with 0x or in decimal
        #[arg(value_parser = address)]
        start: u64,
        /// Number of blocks
        #[arg(default_value_t = 1)]
        blocks: u32,
        #[command(flatten)]
        target: Target,
    },
}

impl Memory {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), CliError> {
        match self {
            Self::Show(target) => print_json(out, &target.get("/memory")?),
            Self::Cma(target) => print_json(out, &target.get("/memory/cma")?),
            Self::Map(args) => args.run(out),
            Self::Compact(args) => args.run(out),
            Self::Park(args) => args.run(out),
            Self::Unpark(args) => args.run(out),
            Self::Stats(target) => {
                let (paging, pool) = (target.get("/memory/paging")?, target.get("/memory/pool")?);
                print_json(out, &json!({"paging": paging, "pool": pool}))
            }
            Self::Evacuate { start, blocks, target } => {
                let body = json!({"start": start, "blocks": blocks});
                print_json(out, &target.put("/memory/evacuate", &body)?)
            }
        }
    }
}

fn save(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    std::fs::write(path, bytes).map_err(|cause| CliError::File { path: path.to_owned(), cause })
}

pub(super) fn address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("`{text}` is no address, as in 0x40000000"))
}

fn print_json(out: &mut impl Write, value: &Value) -> Result<(), CliError> {
    writeln!(out, "{value:#}")?;
    Ok(())
}
