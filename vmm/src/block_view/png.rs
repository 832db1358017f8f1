// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The map as a PNG picture with a legend.

use font8x8::UnicodeFonts;

use super::kind::BlockKind;
use super::runs::BlockRuns;

/// Blocks per line: 128 MiB.
const PER_LINE: usize = 64;
/// Pixels per block, with the gap to the next.
const CELL: usize = 10;
const LEFT: usize = 124;
const TOP: usize = 36;
const LEGEND_ROW: usize = 18;
const BLACK: [u8; 3] = [0; 3];

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the block map: {0}")]
pub struct PictureError(#[from] png::EncodingError);

/// Draws the map under `title`. Characters beyond ASCII are left blank.
///
/// # Errors
///
/// [`PictureError`]: the picture cannot be encoded.
pub fn to_png(map: &BlockRuns, title: &str) -> Result<Vec<u8>, PictureError> {
    let mut lines: Vec<u64> = map.iter().map(|(id, _)| id / PER_LINE as u64).collect();
    lines.dedup();
    let legend_top = TOP + lines.len() * CELL + 16;
    let height = legend_top + (BlockKind::ALL.len() + 1) * LEGEND_ROW + 8;
    let mut canvas = Canvas::new(LEFT + PER_LINE * CELL + 16, height);
    canvas.text(LEFT, 14, title);
    for (row, line) in lines.iter().enumerate() {
        let address = format!("{:>#13x}", line * PER_LINE as u64 * map.block_bytes);
        canvas.text(8, TOP + row * CELL + 1, &address);
    }
    for (id, block) in map.iter() {
        let line = id / PER_LINE as u64;
        let row = lines.partition_point(|&l| l < line);
        let (x, y) = (LEFT + (id % PER_LINE as u64) as usize * CELL, TOP + row * CELL);
        canvas.fill(x, y, CELL - 1, CELL - 1, BlockKind::of(block).colour());
        if block.gpu > 0 {
            canvas.fill(x + 3, y + 3, 3, 3, BLACK);
        }
        if block.cma {
            canvas.fill(x, y + CELL - 3, CELL - 1, 2, BLACK);
        }
    }
    let mut y = legend_top;
    for kind in BlockKind::ALL {
        let count = map.iter().filter(|(_, b)| BlockKind::of(b) == kind).count();
        canvas.fill(LEFT, y, 12, 12, kind.colour());
        canvas.text(LEFT + 20, y + 2, &format!("{}: {count} blocks", kind.name()));
        y += LEGEND_ROW;
    }
    canvas.text(LEFT, y + 2, "dot: GPU buffers; bar: CMA region; one cell is 2 MiB");
    canvas.encode()
}

/// A picture in memory, three bytes a pixel, white at first.
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0xff; width * height * 3] }
    }

    /// Paints a rectangle; clipped to the picture.
    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, colour: [u8; 3]) {
        for row in y..(y + height).min(self.height) {
            for column in x..(x + width).min(self.width) {
                let at = (row * self.width + column) * 3;
                self.pixels[at..at + 3].copy_from_slice(&colour);
            }
        }
    }

    fn text(&mut self, x: usize, y: usize, text: &str) {
        for (index, character) in text.chars().enumerate() {
            let Some(glyph) = font8x8::BASIC_FONTS.get(character) else { continue };
            for (row, bits) in glyph.iter().enumerate() {
                for column in (0..8).filter(|column| bits & (1 << column) != 0) {
                    self.fill(x + index * 8 + column, y + row, 1, 1, BLACK);
                }
            }
        }
    }

    fn encode(&self) -> Result<Vec<u8>, PictureError> {
        let mut out = Vec::new();
        let (width, height) = (self.width as u32, self.height as u32);
        let mut encoder = png::Encoder::new(&mut out, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(&self.pixels)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use mm::units::BLOCK_SIZE;

    use super::*;
    use crate::block_view::BlockRun;

    #[test]
    fn blocks_have_their_colour() {
        let run = |first, present| BlockRun { first, blocks: 2, present, ..BlockRun::default() };
        let map = BlockRuns { block_bytes: BLOCK_SIZE, runs: vec![run(0, 512), run(2048, 0)] };
        let bytes = to_png(&map, "two lines").unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let pixel = |x: usize, y: usize| {
            let at = (y * info.width as usize + x) * 3;
            [pixels[at], pixels[at + 1], pixels[at + 2]]
        };
        assert_eq!(pixel(LEFT + CELL + 1, TOP + 1), BlockKind::Dense.colour());
        assert_eq!(pixel(LEFT + 1, TOP + CELL + 1), BlockKind::Absent.colour());
        assert_eq!(pixel(LEFT + 3 * CELL, TOP + 1), [0xff; 3]);
    }
}
