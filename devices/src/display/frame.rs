// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pixels that were copied out of the guest, and how a cursor is put on them.

use super::{CURSOR_EXTENT, Cursor, Pixels, Rect, Size};

/// A picture in B8G8R8X8, rows without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    size: Size,
    data: Vec<u8>,
}

impl Frame {
    /// A black picture; `None` when the host has no room for it.
    pub fn new(size: Size) -> Option<Self> {
        let bytes = usize::try_from(size.bytes()).ok()?;
        let mut data = Vec::new();
        data.try_reserve_exact(bytes).ok()?;
        data.resize(bytes, 0);
        Some(Self { size, data })
    }

    /// Its size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// All pixels, four bytes each, row by row.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Bytes of one row.
    pub fn stride(&self) -> usize {
        4 * self.size.width as usize
    }

    /// Takes the pixels of `damage` from `pixels`, as far as both have them.
    pub fn update(&mut self, damage: Rect, pixels: &dyn Pixels) {
        let here = Rect::whole(self.size).intersection(Rect::whole(pixels.size()));
        let Some(damage) = here.and_then(|here| here.intersection(damage)) else { return };
        let stride = self.stride();
        let first = damage.y as usize * stride + 4 * damage.x as usize;
        pixels.copy(damage, &mut self.data[first..], stride);
    }

    /// A copy of the part of it that lies in `area`, and where that is; `None` when that is nothing.
    pub fn crop(&self, area: Rect) -> Option<(Rect, Self)> {
        let area = area.intersection(Rect::whole(self.size))?;
        let mut part = Self::new(area.size())?;
        let (from, to) = (self.stride(), part.stride());
        let left = 4 * area.x as usize;
        let rows = self.data.chunks_exact(from).skip(area.y as usize);
        for (row, line) in rows.zip(part.data.chunks_exact_mut(to)) {
            line.copy_from_slice(&row[left..left + to]);
        }
        Some((area, part))
    }

    /// Puts `cursor` over the picture, where it is inside.
    pub fn compose(&mut self, cursor: &Cursor) {
        let Some(image) = &cursor.image else { return };
        let stride = self.stride();
        let extent = i64::from(CURSOR_EXTENT);
        let visible = |at: i32, limit: u32| {
            let at = i64::from(at);
            at.max(0)..(at + extent).min(i64::from(limit))
        };
        for y in visible(cursor.y, self.size.height) {
            for x in visible(cursor.x, self.size.width) {
                let from = (y - i64::from(cursor.y)) * extent + (x - i64::from(cursor.x));
                // Both are inside their pictures: not negative, and within memory.
                let (Ok(from), Ok(x), Ok(y)) =
                    (usize::try_from(from), usize::try_from(x), usize::try_from(y))
                else {
                    continue;
                };
                let to = y * stride + 4 * x;
                blend(&mut self.data[to..to + 4], &image[4 * from..4 * from + 4]);
            }
        }
    }
}

/// Puts `over`, whose colours are already multiplied by its alpha, over `under`.
fn blend(under: &mut [u8], over: &[u8]) {
    let through = 255 - u32::from(over[3]);
    for channel in 0..3 {
        let behind = (u32::from(under[channel]) * through + 127) / 255;
        let sum = u32::from(over[channel]) + behind;
        under[channel] = u8::try_from(sum).unwrap_or(u8::MAX);
    }
}

/// A picture and the cursor that was over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The picture, without the cursor.
    pub frame: Frame,
    /// The cursor.
    pub cursor: Cursor,
}

impl Snapshot {
    /// The picture as a person would see it.
    pub fn composed(mut self) -> Frame {
        self.frame.compose(&self.cursor);
        self.frame
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::display::CURSOR_BYTES;

    fn cursor(x: i32, y: i32, pixel: [u8; 4]) -> Cursor {
        let mut image = [0; CURSOR_BYTES];
        image.as_chunks_mut::<4>().0.fill(pixel);
        Cursor { x, y, image: Some(Arc::new(image)), ..Cursor::default() }
    }

    proptest! {
        #[test]
        fn an_opaque_cursor_covers_exactly_its_place(
            x in prop_oneof![-100..200i32, any::<i32>()],
            y in prop_oneof![-100..200i32, any::<i32>()],
        ) {
            let mut frame = Frame::new(Size::new(100, 80)).unwrap();
            frame.compose(&cursor(x, y, [1, 2, 3, 255]));
            for (i, pixel) in frame.data().as_chunks::<4>().0.iter().enumerate() {
                let at = |start: i32, n: usize| {
                    let n = n as i64 - i64::from(start);
                    (0..64).contains(&n)
                };
                let inside = at(x, i % 100) && at(y, i / 100);
                prop_assert_eq!(&pixel[..3], if inside { &[1, 2, 3] } else { &[0, 0, 0] });
            }
        }
    }

    #[test]
    fn alpha_lets_the_picture_through() {
        let mut under = [200, 100, 0, 0];
        blend(&mut under, &[0, 0, 0, 0]);
        assert_eq!(under, [200, 100, 0, 0]);
        blend(&mut under, &[64, 64, 64, 128]);
        assert_eq!(under, [64 + 100, 64 + 50, 64, 0]);
        // A guest that does not multiply by alpha gets a bright cursor, not an overflow.
        blend(&mut under, &[255, 255, 255, 0]);
        assert_eq!(&under[..3], &[255, 255, 255]);
    }
}
