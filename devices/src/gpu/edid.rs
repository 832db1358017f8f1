// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The EDID of a scanout: one base block, VESA E-EDID standard release A, 2 (EDID 1.4).
//!
//! The preferred mode is a detailed timing by the reduced-blanking formula of VESA CVT 1.1, as a
//! digital panel of that size would have it.

use crate::display::{Extent, Size};

/// Bytes of one EDID block.
pub(super) const BLOCK_SIZE: usize = 128;

/// Largest width and height of a mode: a detailed timing has twelve bits for each.
pub const MAX_EXTENT: u32 = 4095;

/// Smallest width and height of a mode that Linux's driver accepts for a framebuffer.
pub const MIN_EXTENT: u32 = 32;

/// Frames per second of every mode, unless its pixel clock would leave the field's 16 bits.
const REFRESH_HZ: u64 = 60;

/// Largest pixel clock that a detailed timing can name, in units of 10 kHz.
const MAX_CLOCK_10KHZ: u64 = 0xffff;

/// A detailed timing: pixels, lines and the pixel clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Timing {
    width: u32,
    height: u32,
    h_blank: u32,
    h_front: u32,
    h_sync: u32,
    v_blank: u32,
    v_front: u32,
    v_sync: u32,
    clock_10khz: u16,
}

impl Timing {
    /// CVT 1.1, section 3.4.2 (reduced blanking), at 60 Hz.
    fn reduced_blanking(active: Size) -> Self {
        const H_BLANK: u32 = 160;
        const MIN_V_BLANK_NS: u64 = 460_000;
        const V_FRONT: u32 = 3;
        const MIN_V_BACK: u32 = 6;
        const FRAME_NS: u64 = 1_000_000_000 / REFRESH_HZ;

        let (width, height) = (u32::from(active.width), u32::from(active.height));
        let v_sync = v_sync_of_aspect(width, height);
        let lines = u64::from(height);
        let blank_lines = MIN_V_BLANK_NS * lines / (FRAME_NS - MIN_V_BLANK_NS) + 1;
        // A mode's lines have twelve bits, and its blank ones are fewer.
        let v_blank = (blank_lines as u32).max(V_FRONT + v_sync + MIN_V_BACK);
        let total = u64::from(width + H_BLANK) * u64::from(height + v_blank) * REFRESH_HZ;
        // The clock comes in steps of 0.25 MHz.
        let clock = (total / 250_000 * 25).clamp(1, MAX_CLOCK_10KHZ);
        Self {
            width,
            height,
            h_blank: H_BLANK,
            h_front: 48,
            h_sync: 32,
            v_blank,
            v_front: V_FRONT,
            v_sync,
            clock_10khz: clock as u16,
        }
    }

    /// The 18 bytes of a detailed timing descriptor (E-EDID, 3.10.2).
    fn encode(self, (width_mm, height_mm): (u32, u32)) -> [u8; 18] {
        let mut d = [0; 18];
        d[..2].copy_from_slice(&self.clock_10khz.to_le_bytes());
        (d[2], d[3], d[4]) = split_12(self.width, self.h_blank);
        (d[5], d[6], d[7]) = split_12(self.height, self.v_blank);
        d[8] = low8(self.h_front);
        d[9] = low8(self.h_sync);
        d[10] = low8((self.v_front & 0xf) << 4 | self.v_sync & 0xf);
        d[11] = low8(
            (self.h_front >> 8 & 3) << 6
                | (self.h_sync >> 8 & 3) << 4
                | (self.v_front >> 4 & 3) << 2
                | self.v_sync >> 4 & 3,
        );
        (d[12], d[13], d[14]) = split_12(width_mm, height_mm);
        // Digital separate sync; horizontal positive, vertical negative: reduced blanking.
        d[17] = 0x1a;
        d
    }
}

/// The vertical sync width encodes the aspect ratio (CVT 1.1, table 3-2).
fn v_sync_of_aspect(width: u32, height: u32) -> u32 {
    match (width, height) {
        (w, h) if w * 3 == h * 4 => 4,
        (w, h) if w * 9 == h * 16 => 5,
        (w, h) if w * 10 == h * 16 => 6,
        (w, h) if w * 4 == h * 5 || w * 9 == h * 15 => 7,
        _ => 10,
    }
}

/// Low eight bits of both, then their upper four bits in one byte, `a`'s first.
fn split_12(a: u32, b: u32) -> (u8, u8, u8) {
    (low8(a), low8(b), low8((a >> 8 & 0xf) << 4 | b >> 8 & 0xf))
}

fn low8(n: u32) -> u8 {
    n.to_le_bytes()[0]
}

/// The EDID of scanout number `scanout`, which prefers `mode`.
///
/// `mode` lies between [`MIN_EXTENT`] and [`MAX_EXTENT`] both ways.
pub(super) fn edid(mode: Size, scanout: u32) -> [u8; BLOCK_SIZE] {
    // 96 dots an inch: guests then scale by one.
    let millimetres = |pixels: Extent| u32::from(pixels) * 254 / 960;
    let image_mm = (millimetres(mode.width), millimetres(mode.height));

    let mut e = [0; BLOCK_SIZE];
    e[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    e[8..10].copy_from_slice(&manufacturer(*b"BLS"));
    e[10..12].copy_from_slice(&1u16.to_le_bytes());
    e[12..16].copy_from_slice(&(scanout + 1).to_le_bytes());
    e[17] = 36; // made in 2026, counted from 1990
    e[18..20].copy_from_slice(&[1, 4]);
    e[20] = 0xa0; // digital, 8 bits a colour, interface not defined
    e[21] = low8((image_mm.0 / 10).clamp(1, 255));
    e[22] = low8((image_mm.1 / 10).clamp(1, 255));
    e[23] = 120; // gamma 2.2
    e[24] = 0x06; // RGB 4:4:4, sRGB is the default, the first timing is the native one
    e[25..35].copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    e[35..37].copy_from_slice(&established(mode));
    e[38..54].fill(1); // no standard timings
    e[54..72].copy_from_slice(&Timing::reduced_blanking(mode).encode(image_mm));
    e[72..90].copy_from_slice(&text(0xfc, "Ballast"));
    e[90..108].copy_from_slice(&text(0xff, &format!("scanout-{scanout}")));
    e[108..126].copy_from_slice(&dummy());
    let sum = e.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    e[127] = sum.wrapping_neg();
    e
}

/// Three letters of five bits each, big-endian (E-EDID, 3.4.1).
fn manufacturer(letters: [u8; 3]) -> [u8; 2] {
    letters.into_iter().fold(0u16, |id, c| id << 5 | u16::from(c - b'A' + 1)).to_be_bytes()
}

/// Established timings at 60 Hz that fit in `mode` (E-EDID, 3.8).
fn established(mode: Size) -> [u8; 2] {
    let fits = |width, height| u32::from(mode.width) >= width && u32::from(mode.height) >= height;
    let mut bits = [0; 2];
    for (size, byte, bit) in [((640, 480), 0, 5), ((800, 600), 0, 0), ((1024, 768), 1, 3)] {
        if fits(size.0, size.1) {
            bits[byte] |= 1 << bit;
        }
    }
    bits
}

/// A text descriptor: at most 13 characters, ended by a line feed, padded with blanks.
fn text(tag: u8, text: &str) -> [u8; 18] {
    let mut d = [b' '; 18];
    d[..5].copy_from_slice(&[0, 0, 0, tag, 0]);
    let bytes = &text.as_bytes()[..text.len().min(13)];
    d[5..5 + bytes.len()].copy_from_slice(bytes);
    if bytes.len() < 13 {
        d[5 + bytes.len()] = b'\n';
    }
    d
}

/// The descriptor that says nothing.
fn dummy() -> [u8; 18] {
    let mut d = [0; 18];
    d[3] = 0x10;
    d
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads back the first detailed timing as a monitor driver would.
    fn preferred(e: &[u8]) -> (u32, u32, u32, u32, u32) {
        let d = &e[54..72];
        let wide =
            |low: u8, high: u8, shift: u32| u32::from(low) | (u32::from(high) >> shift & 0xf) << 8;
        (
            u32::from(u16::from_le_bytes([d[0], d[1]])) * 10_000,
            wide(d[2], d[4], 4),
            wide(d[3], d[4], 0),
            wide(d[5], d[7], 4),
            wide(d[6], d[7], 0),
        )
    }

    proptest! {
        #[test]
        fn every_mode_has_a_valid_block_that_names_it(
            width in MIN_EXTENT..=MAX_EXTENT,
            height in MIN_EXTENT..=MAX_EXTENT,
            scanout in 0..16u32,
        ) {
            let e = edid(Size::checked(width, height).unwrap(), scanout);
            prop_assert_eq!(e.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
            prop_assert_eq!(&e[..8], &[0, 255, 255, 255, 255, 255, 255, 0]);
            let (clock, w, h_blank, h, v_blank) = preferred(&e);
            prop_assert_eq!((w, h), (width, height));
            // 60 Hz to within the clock's step, or less where the clock's field ends.
            let total = u64::from(w + h_blank) * u64::from(h + v_blank);
            let most = total * 60;
            prop_assert!(u64::from(clock) <= most);
            prop_assert!(u64::from(clock) + 250_000 > most || clock == 655_350_000);
        }
    }

    #[test]
    fn full_hd_is_the_timing_that_the_standard_lists() {
        // DMT 1.0 rev 13, 0x52's reduced-blanking sibling by CVT: 138.5 MHz, 2080 by 1111.
        let e = edid(Size::new(1920, 1080), 0);
        assert_eq!(preferred(&e), (138_500_000, 1920, 160, 1080, 31));
    }

    #[test]
    fn established_timings_do_not_exceed_the_mode() {
        assert_eq!(established(Size::new(640, 400)), [0, 0]);
        assert_eq!(established(Size::new(800, 600)), [0x21, 0]);
        assert_eq!(established(Size::new(1920, 1080)), [0x21, 0x08]);
    }
}
