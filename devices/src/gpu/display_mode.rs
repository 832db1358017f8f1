// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Modes that a scanout can be announced with.

use super::edid::{MAX_EXTENT, MIN_EXTENT};
use crate::display::Size;

/// A mode that no scanout can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// The device has fewer scanouts.
    #[error("unknown scanout {0}")]
    NoScanout(u32),
    /// EDID has twelve bits for each extent, and Linux refuses less than 32 pixels.
    #[error(
        "invalid mode {width}x{height}: width and height must be {MIN_EXTENT} to {MAX_EXTENT} \
         pixels"
    )]
    Extent {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
    },
}

/// The size of a mode that a person asks for.
///
/// # Errors
///
/// [`ModeError::Extent`] when a scanout cannot have it.
pub fn mode(width: u32, height: u32) -> Result<Size, ModeError> {
    let good = |extent| (MIN_EXTENT..=MAX_EXTENT).contains(&extent);
    Size::checked(width, height)
        .filter(|_| good(width) && good(height))
        .ok_or(ModeError::Extent { width, height })
}
