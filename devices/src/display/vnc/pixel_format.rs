// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pixel formats of RFB (RFC 6143, 7.4), as requested by a client.

/// A true-colour format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientPixelFormat {
    /// Bytes of a pixel: 1, 2 or 4.
    bytes: usize,
    depth: u8,
    big_endian: bool,
    /// Largest value of red, green and blue.
    max: [u16; 3],
    /// Where the lowest bit of each is.
    shift: [u8; 3],
}

impl Default for ClientPixelFormat {
    /// What frames have: blue, green, red, unused.
    fn default() -> Self {
        Self { bytes: 4, depth: 24, big_endian: false, max: [255; 3], shift: [16, 8, 0] }
    }
}

impl ClientPixelFormat {
    /// The format that a client asks for; `None` for one with a colour map, or that cannot be.
    pub(super) fn from_wire(wire: &[u8; 16]) -> Option<Self> {
        let [bits, depth, big_endian, true_colour, rest @ ..] = *wire;
        let bytes = match bits {
            8 => 1,
            16 => 2,
            32 => 4,
            _ => return None,
        };
        let max = [0, 2, 4].map(|at| u16::from_be_bytes([rest[at], rest[at + 1]]));
        let shift = [rest[6], rest[7], rest[8]];
        let fits = |(max, shift): (&u16, &u8)| {
            let width = 16 - max.leading_zeros() + u32::from(*shift);
            width <= u32::from(bits)
        };
        let good = true_colour != 0 && max.iter().zip(&shift).all(fits);
        good.then_some(Self { bytes, depth, big_endian: big_endian != 0, max, shift })
    }

    /// As ServerInit has it.
    pub(super) fn to_wire(self) -> [u8; 16] {
        let mut wire = [0; 16];
        wire[0] = [0, 8, 16, 0, 32][self.bytes];
        wire[1] = self.depth;
        wire[2] = self.big_endian.into();
        wire[3] = 1;
        for (i, max) in self.max.iter().enumerate() {
            wire[4 + 2 * i..6 + 2 * i].copy_from_slice(&max.to_be_bytes());
        }
        wire[10..13].copy_from_slice(&self.shift);
        wire
    }

    /// Adds pixels of a frame to `out` in this format.
    pub(super) fn encode(self, bgrx: &[u8], out: &mut Vec<u8>) {
        if self == Self::default() {
            out.extend_from_slice(bgrx);
            return;
        }
        out.reserve(bgrx.len() / 4 * self.bytes);
        for [b, g, r, _] in bgrx.as_chunks::<4>().0 {
            let scaled = |i: usize, channel: u8| {
                ((u32::from(channel) * u32::from(self.max[i]) + 127) / 255) << self.shift[i]
            };
            let pixel = scaled(0, *r) | scaled(1, *g) | scaled(2, *b);
            if self.big_endian {
                out.extend_from_slice(&pixel.to_be_bytes()[4 - self.bytes..]);
            } else {
                out.extend_from_slice(&pixel.to_le_bytes()[..self.bytes]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn colours_arrive_in_common_formats() {
        let orange = [0x00, 0x80, 0xff, 0x77]; // blue, green, red, unused
        let encode = |bits, big, max: [u16; 3], shift: [u8; 3]| {
            let mut wire = [0; 16];
            (wire[0], wire[2], wire[3]) = (bits, big, 1);
            for (i, max) in max.iter().enumerate() {
                wire[4 + 2 * i..6 + 2 * i].copy_from_slice(&max.to_be_bytes());
            }
            wire[10..13].copy_from_slice(&shift);
            let mut out = Vec::new();
            ClientPixelFormat::from_wire(&wire).unwrap().encode(&orange, &mut out);
            out
        };
        assert_eq!(encode(32, 1, [255; 3], [16, 8, 0]), [0, 0xff, 0x80, 0]);
        assert_eq!(encode(16, 0, [31, 63, 31], [11, 5, 0]), 0xfc00u16.to_le_bytes());
        assert_eq!(encode(8, 0, [7, 7, 3], [0, 3, 6]), [0b00_100_111]);
    }

    proptest! {
        /// A format is refused, or pixels in it have its size; nothing overflows.
        #[test]
        fn any_format_is_refused_or_kept(wire: [u8; 16], pixel: [u8; 4]) {
            if let Some(format) = ClientPixelFormat::from_wire(&wire) {
                let mut out = Vec::new();
                format.encode(&pixel, &mut out);
                prop_assert_eq!(out.len(), usize::from(wire[0] / 8));
                prop_assert_eq!(ClientPixelFormat::from_wire(&format.to_wire()), Some(format));
            }
        }
    }
}
