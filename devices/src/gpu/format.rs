// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The eight pixel formats of the 2D command set (virtio 1.3, 5.7.6.8) and their conversion.
//!
//! A format is named by its bytes in memory order. Displays see one format only, B8G8R8X8 (or
//! B8G8R8A8 for a cursor): Linux draws in it, so usually no conversion is needed.

/// Bytes of one pixel, the same for every format of the 2D command set.
pub(super) const BYTES_PER_PIXEL: u32 = 4;

/// A pixel format; the value is the one on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "each name spells the bytes in memory order")]
pub enum PixelFormat {
    B8G8R8A8 = 1,
    B8G8R8X8 = 2,
    A8R8G8B8 = 3,
    X8R8G8B8 = 4,
    R8G8B8A8 = 67,
    X8B8G8R8 = 68,
    A8B8G8R8 = 121,
    R8G8B8X8 = 134,
}

impl PixelFormat {
    /// Every format, in the order of the wire values.
    pub const ALL: [Self; 8] = [
        Self::B8G8R8A8,
        Self::B8G8R8X8,
        Self::A8R8G8B8,
        Self::X8R8G8B8,
        Self::R8G8B8A8,
        Self::X8B8G8R8,
        Self::A8B8G8R8,
        Self::R8G8B8X8,
    ];

    /// The format that the guest names by `raw`, if there is one.
    pub fn from_wire(raw: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| *format as u32 == raw)
    }

    /// Where in a pixel the blue, green, red and alpha (or unused) bytes are.
    const fn bgra(self) -> [usize; 4] {
        match self {
            Self::B8G8R8A8 | Self::B8G8R8X8 => [0, 1, 2, 3],
            Self::A8R8G8B8 | Self::X8R8G8B8 => [3, 2, 1, 0],
            Self::R8G8B8A8 | Self::R8G8B8X8 => [2, 1, 0, 3],
            Self::A8B8G8R8 | Self::X8B8G8R8 => [1, 2, 3, 0],
        }
    }

    /// True when a pixel has an alpha byte rather than an unused one.
    pub const fn has_alpha(self) -> bool {
        matches!(self, Self::B8G8R8A8 | Self::A8R8G8B8 | Self::R8G8B8A8 | Self::A8B8G8R8)
    }

    /// Turns whole pixels of this format into B8G8R8A8 (or X8, as the format has it), in place.
    pub fn to_bgra(self, pixels: &mut [u8]) {
        let [b, g, r, a] = self.bgra();
        if b == 0 {
            return;
        }
        for pixel in pixels.as_chunks_mut::<4>().0 {
            *pixel = [pixel[b], pixel[g], pixel[r], pixel[a]];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_yields_the_same_colour() {
        // One colour, written as each format's name says.
        let (r, g, b, a) = (0x11, 0x22, 0x33, 0x44);
        for format in PixelFormat::ALL {
            let name = format!("{format:?}");
            let mut pixel: Vec<u8> = name
                .chars()
                .filter(char::is_ascii_alphabetic)
                .map(|channel| match channel {
                    'R' => r,
                    'G' => g,
                    'B' => b,
                    _ => a,
                })
                .collect();
            format.to_bgra(&mut pixel);
            assert_eq!(pixel, [b, g, r, a], "{name}");
            assert_eq!(format.has_alpha(), name.contains('A'), "{name}");
            assert_eq!(PixelFormat::from_wire(format as u32), Some(format));
        }
    }

    #[test]
    fn unknown_wire_values_are_none() {
        for raw in [0, 5, 66, 69, 120, 122, 133, 135, u32::MAX] {
            assert_eq!(PixelFormat::from_wire(raw), None);
        }
    }
}
