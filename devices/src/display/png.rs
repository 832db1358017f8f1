// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A frame as a PNG file, for the API and for tests.

use super::Frame;

/// A picture that could not be written as PNG.
#[derive(Debug, thiserror::Error)]
#[error("cannot write a {width} by {height} picture as PNG: {source}")]
pub struct PngError {
    width: u32,
    height: u32,
    source: png::EncodingError,
}

/// The frame as an RGB PNG of eight bits a channel.
///
/// It takes milliseconds per megapixel: not for a thread that others wait for.
pub fn encode_png(frame: &Frame) -> Result<Vec<u8>, PngError> {
    let (width, height) = (frame.size().width, frame.size().height);
    let rgb: Vec<u8> =
        frame.data().as_chunks::<4>().0.iter().flat_map(|[b, g, r, _]| [*r, *g, *b]).collect();
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(&rgb)?;
        writer.finish()
    });
    written.map_err(|source| PngError { width, height, source })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::display::{Pixels, Rect, Size};

    struct Ramp;

    impl Pixels for Ramp {
        fn size(&self) -> Size {
            Size::new(5, 3)
        }

        fn copy(&self, rect: Rect, out: &mut [u8], stride: usize) {
            for y in rect.y..rect.y + rect.height {
                for x in rect.x..rect.x + rect.width {
                    let at = (y - rect.y) as usize * stride + 4 * (x - rect.x) as usize;
                    out[at..at + 4].copy_from_slice(&[x as u8, y as u8, (x + y) as u8, 9]);
                }
            }
        }
    }

    #[test]
    fn a_reader_gets_the_pixels_back() {
        let mut frame = Frame::new(Ramp.size()).unwrap();
        frame.update(Rect::whole(Ramp.size()), &Ramp);
        let file = encode_png(&frame).unwrap();

        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgb).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (5, 3, png::ColorType::Rgb));
        for (i, pixel) in rgb.as_chunks::<3>().0.iter().enumerate() {
            let (x, y) = ((i % 5) as u8, (i / 5) as u8);
            assert_eq!(*pixel, [x + y, y, x]);
        }
    }
}
