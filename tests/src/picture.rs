// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pictures of scanouts, as the API gives them.

use guest_agent::checksum;

use crate::{Error, Result};

/// Red, green, blue.
pub type Colour = [u8; 3];

/// A picture, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Width, in pixels.
    pub width: usize,
    /// Height, in pixels.
    pub height: usize,
    /// Row by row.
    pixels: Vec<Colour>,
}

impl Picture {
    /// Decodes a PNG of eight bits a channel, with or without alpha.
    pub fn from_png(bytes: &[u8]) -> Result<Self> {
        let fault = |error: &dyn std::fmt::Display| Error::Check(format!("not a picture: {error}"));
        let mut reader =
            png::Decoder::new(std::io::Cursor::new(bytes)).read_info().map_err(|e| fault(&e))?;
        let size = reader.output_buffer_size().ok_or_else(|| fault(&"it has no size"))?;
        let mut data = vec![0; size];
        let info = reader.next_frame(&mut data).map_err(|e| fault(&e))?;
        let channels = match (info.color_type, info.bit_depth) {
            (png::ColorType::Rgb, png::BitDepth::Eight) => 3,
            (png::ColorType::Rgba, png::BitDepth::Eight) => 4,
            other => return Err(fault(&format!("{other:?}"))),
        };
        let pixels = data[..info.buffer_size()]
            .chunks_exact(channels)
            .map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect();
        Ok(Self { width: info.width as usize, height: info.height as usize, pixels })
    }

    /// One pixel.
    ///
    /// # Panics
    /// If it lies outside.
    #[must_use]
    pub fn pixel(&self, x: usize, y: usize) -> Colour {
        assert!(x < self.width, "column {x} of {}", self.width);
        self.pixels[y * self.width + x]
    }

    /// The part from `left`, `top` on, `width` pixels by `height`, cut off at the edges.
    #[must_use]
    pub fn part(&self, left: usize, top: usize, width: usize, height: usize) -> Self {
        let (right, bottom) = ((left + width).min(self.width), (top + height).min(self.height));
        let rows = top..bottom;
        let pixels = rows.flat_map(|y| (left..right).map(move |x| self.pixel(x, y))).collect();
        Self { width: right.saturating_sub(left), height: bottom.saturating_sub(top), pixels }
    }

    /// Over all pixels, as the agent makes it when it draws.
    #[must_use]
    pub fn checksum(&self) -> u64 {
        self.pixels.iter().flatten().copied().fold(checksum::START, checksum::add)
    }

    /// Pixels that are not black.
    #[must_use]
    pub fn lit(&self) -> usize {
        self.pixels.iter().filter(|&&pixel| pixel != [0; 3]).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_png_is_read_and_cut() {
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, 3, 2);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let data: Vec<u8> = (0..18).collect();
        encoder.write_header().unwrap().write_image_data(&data).unwrap();
        let picture = Picture::from_png(&png).unwrap();
        assert_eq!((picture.width, picture.height), (3, 2));
        assert_eq!(picture.pixel(1, 1), [12, 13, 14]);
        let part = picture.part(1, 1, 9, 9);
        assert_eq!((part.width, part.height), (2, 1));
        assert_eq!(part.pixel(1, 0), picture.pixel(2, 1));
        assert_eq!(part.lit(), 2);
        assert_ne!(part.checksum(), picture.checksum());
        assert!(Picture::from_png(b"nonsense").is_err());
    }
}
