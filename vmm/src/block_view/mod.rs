// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The blocks of guest memory, to be looked at: as JSON, as bytes, on a terminal, as a picture.
//!
//! Pure: the command line draws the data that the API sends. May use `mm::blocks`; knows neither
//! KVM nor devices.
//!
//! - `runs.rs`: runs of equal blocks, as the API sends them, in JSON or compact
//! - `kind.rs`: kinds of blocks, their colours and names
//! - `terminal.rs`, `svg.rs`, `png.rs`: the pictures

mod kind;
mod png;
mod runs;
mod svg;
mod terminal;

pub use kind::BlockKind;
pub use png::{PictureError, to_png};
pub use runs::{BlockRun, BlockRuns, RunsError};
pub use svg::to_svg;
pub use terminal::to_terminal;
