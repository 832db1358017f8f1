// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that has a little memory and does nothing with it, and offers itself to the OOM killer:
//! where memory ends in a kill, it shows when that was, and the machine lives on.

use std::fs;
use std::io::{self, Read};

use crate::commands;
use crate::region::Region;

/// Takes so much memory and waits for the end of the input.
pub(crate) fn run(size: &str) -> io::Result<()> {
    let bytes = commands::bytes(size).map_err(io::Error::other)?;
    fs::write("/proc/self/oom_score_adj", "1000")?;
    let mut region = Region::map(bytes, 0, false)?;
    region.fill();
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
