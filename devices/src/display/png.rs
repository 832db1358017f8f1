// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A frame as a PNG file, for the API and for tests.

use std::io::{self, Write};
use std::sync::Arc;

use mm::budget::{Budget, Charge};

use super::{Frame, Size};

/// A picture that could not be written as PNG, most likely because memory is short.
#[derive(Debug, thiserror::Error)]
#[error("cannot write a {} by {} picture as PNG: {source}", .size.width, .size.height)]
pub struct PngError {
    size: Size,
    source: png::EncodingError,
}

/// The bytes of a PNG file, charged to a budget while they live.
#[derive(Debug)]
pub struct PngFile {
    bytes: Vec<u8>,
    charge: Charge,
}

impl AsRef<[u8]> for PngFile {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Write for PngFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.bytes.len() + bytes.len();
        if len > self.bytes.capacity() {
            // Grown here and not by the vector, so that every allocated byte is charged.
            let capacity = len.max(self.bytes.capacity() * 2).next_multiple_of(4096);
            self.charge.resize(capacity as u64).map_err(io::Error::other)?;
            let more = capacity - self.bytes.len();
            self.bytes.try_reserve_exact(more).map_err(io::Error::other)?;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The frame, which is complete, as an RGB PNG of eight bits a channel; charged to `budget`.
///
/// It takes milliseconds per megapixel: do not call it on a thread that others wait for.
///
/// # Errors
///
/// [`PngError`] when the file does not fit in the budget, or the frame is not complete.
pub fn encode_png(frame: &Frame, budget: &Arc<Budget>) -> Result<PngFile, PngError> {
    let size = frame.size();
    let failed = |source| PngError { size, source };
    let charge = budget.try_charge(0).map_err(|error| failed(io::Error::other(error).into()))?;
    let mut file = PngFile { bytes: Vec::new(), charge };
    write_png(frame, &mut file).map_err(failed)?;
    Ok(file)
}

fn write_png(frame: &Frame, file: &mut PngFile) -> Result<(), png::EncodingError> {
    let Size { width, height } = frame.size();
    let mut encoder = png::Encoder::new(file, width.into(), height.into());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    // One row at a time, without copying the whole picture.
    let mut stream = writer.stream_writer()?;
    let mut rgb = Vec::with_capacity(3 * usize::from(width));
    for row in frame.data().chunks_exact(frame.stride()) {
        rgb.clear();
        rgb.extend(row.as_chunks::<4>().0.iter().flat_map(|[b, g, r, _]| [*r, *g, *b]));
        stream.write_all(&rgb)?;
    }
    stream.finish()?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::display::{Area, Pixels};
    use crate::virtio::{Deadline, Progress};

    struct Ramp;

    impl Pixels for Ramp {
        fn size(&self) -> Size {
            Size::new(5, 3)
        }

        fn copy(&self, area: Area, out: &mut [u8], stride: usize, _: &mut Deadline) -> u32 {
            for y in u32::from(area.y)..area.bottom() {
                for x in u32::from(area.x)..area.right() {
                    let at = (y as usize - usize::from(area.y)) * stride
                        + 4 * (x as usize - usize::from(area.x));
                    out[at..at + 4].copy_from_slice(&[x as u8, y as u8, (x + y) as u8, 9]);
                }
            }
            area.size.height.into()
        }
    }

    fn ramp(budget: &Arc<Budget>) -> Frame {
        let mut frame = Frame::new(Ramp.size(), budget).unwrap();
        assert_eq!(frame.fill(&Ramp, &mut Deadline::never()), Progress::Done);
        frame
    }

    #[test]
    fn a_reader_gets_the_pixels_back() {
        let budget = Budget::bytes("test", 1 << 20);
        let file = encode_png(&ramp(&budget), &budget).unwrap();
        assert!(budget.used() >= file.as_ref().len() as u64);

        let mut reader = png::Decoder::new(io::Cursor::new(&file)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgb).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (5, 3, png::ColorType::Rgb));
        for (i, pixel) in rgb.as_chunks::<3>().0.iter().enumerate() {
            let (x, y) = ((i % 5) as u8, (i / 5) as u8);
            assert_eq!(*pixel, [x + y, y, x]);
        }
        drop(file);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_file_beyond_the_budget_is_refused() {
        let budget = Budget::bytes("test", 60);
        let error = encode_png(&ramp(&budget), &budget).unwrap_err();
        assert!(error.to_string().contains("budget test"), "{error}");
        assert_eq!(budget.used(), 0);
    }
}
