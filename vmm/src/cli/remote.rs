// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Subcommands that ask a running monitor over its API.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand};
use serde_json::json;

use super::compaction::{CompactArgs, MapArgs};
use super::error::CliError;
use super::parking::{ParkArgs, UnparkArgs};
use super::policy::PolicyArgs;
use super::target::{Target, print_json};
use super::values::{SizeMib, address, width_and_height};
use crate::api::gpu::Mode;

/// `ballast shutdown`.
#[derive(Debug, Args)]
pub(super) struct Shutdown {
    #[command(flatten)]
    target: Target,
    /// Stop the machine immediately, without asking the guest
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
pub(super) enum BalloonCommand {
    /// Set the balloon's target size
    Set {
        /// The size, as in 512M
        size: SizeMib,
        #[command(flatten)]
        target: Target,
    },
    /// Print target and settings
    Show(Target),
    /// Print statistics of the device and of the guest, as JSON
    Stats(Target),
}

impl BalloonCommand {
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
pub(super) enum GpuCommand {
    /// Print scanouts, resources and counters, as JSON
    Show(Target),
    /// Save the picture on a scanout as a PNG file
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

impl GpuCommand {
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
pub(super) enum MemoryCommand {
    /// Print how guest memory is backed on the host
    Show(Target),
    /// Print how the CMA region is used and backed
    Cma(Target),
    /// Show the state of every 2 MiB block, on the terminal or as a picture
    Map(MapArgs),
    /// Run a compaction pass: discard unused memory and make the rest huge pages
    Compact(CompactArgs),
    /// Compress guest memory into the monitor's pool; the guest gets it back on access
    Park(ParkArgs),
    /// Bring parked memory back
    Unpark(UnparkArgs),
    /// Show or set the memory policy, with its last decisions
    Policy(PolicyArgs),
    /// Print how much memory is parked, the pool's size and the pager's counters, as JSON
    Stats(Target),
    /// Ask the guest to evacuate 2 MiB blocks
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

impl MemoryCommand {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), CliError> {
        match self {
            Self::Show(target) => print_json(out, &target.get("/memory")?),
            Self::Cma(target) => print_json(out, &target.get("/memory/cma")?),
            Self::Map(args) => args.run(out),
            Self::Compact(args) => args.run(out),
            Self::Park(args) => args.run(out),
            Self::Unpark(args) => args.run(out),
            Self::Policy(args) => args.run(out),
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
