// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pixels that were copied out of the guest, and how a cursor is put on them.

use std::sync::Arc;

use mm::budget::{Budget, BudgetError, Charge};
use mm::units::{SaturatingInto, usize_from};

use super::{Area, CURSOR_EXTENT, Cursor, Extent, Pixels, Size, WIDE};
use crate::virtio::{Deadline, Progress};

/// No memory for a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The budget for host memory is used up.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The host has no memory for it.
    #[error("cannot allocate {0} bytes of host memory for a picture")]
    OutOfMemory(u64),
}

/// A picture in B8G8R8X8, rows without padding, charged to a budget.
///
/// Its rows are filled from the top, a strip at a time; until the last one it is not
/// [complete](Frame::complete). Memory is allocated as rows are filled.
#[derive(Debug)]
pub struct Frame {
    size: Size,
    /// As many pixels as are filled, row by row.
    data: Vec<u8>,
    _charge: Charge,
}

impl Frame {
    /// A picture of `size` without a row yet, charged to `budget` as a whole.
    ///
    /// # Errors
    ///
    /// [`FrameError`] when the budget or the host has too little memory for it.
    pub fn new(size: Size, budget: &Arc<Budget>) -> Result<Self, FrameError> {
        let charge = budget.try_charge(size.bytes())?;
        let none = || FrameError::OutOfMemory(size.bytes());
        let bytes = usize_from(size.bytes());
        let mut data = Vec::new();
        data.try_reserve_exact(bytes).map_err(|_| none())?;
        Ok(Self { size, data, _charge: charge })
    }

    /// Its size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// All filled pixels, four bytes each, row by row.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Bytes of one row.
    pub fn stride(&self) -> usize {
        4 * usize::from(self.size.width)
    }

    /// Whether all of it is filled.
    pub fn complete(&self) -> bool {
        self.missing().is_none()
    }

    /// The rows that are not filled yet, or not wholly.
    fn missing(&self) -> Option<Area> {
        let filled = u32::try_from(self.data.len() / self.stride()).ok()?;
        let left = u32::from(self.size.height).checked_sub(filled)?;
        let size = Size { height: Extent::new(left)?, ..self.size };
        Some(Area { x: 0, y: u16::try_from(filled).ok()?, size })
    }

    /// The pixels to fill next: a strip of rows, or a part of a [wide](WIDE) one. Short, as they are
    /// zeroed before they are copied to.
    fn next_strip(&self) -> Option<Area> {
        let missing = self.missing()?;
        let width = u32::from(missing.size.width);
        if width <= u32::from(WIDE) {
            return Some(missing.split_rows(rows_of(missing)).0);
        }
        let x = u32::try_from(self.data.len() % self.stride() / 4).ok()?;
        let width = Extent::new((width - x).min(WIDE.into()))?;
        let size = Size { width, height: Extent::new(1)? };
        Some(Area { x: u16::try_from(x).ok()?, size, ..missing })
    }

    /// Fills missing pixels from `pixels`, which have this frame's size, until `deadline` passes.
    pub fn fill(&mut self, pixels: &dyn Pixels, deadline: &mut Deadline) -> Progress {
        let stride = self.stride();
        while let Some(strip) = self.next_strip() {
            let from = self.data.len();
            let row = 4 * usize::from(strip.size.width);
            // Within what was reserved: no allocation.
            self.data.resize(from + row * usize::from(strip.size.height), 0);
            let rows = pixels.copy(strip, &mut self.data[from..], stride, deadline);
            self.data.truncate(from + row * rows as usize);
            if deadline.passed() {
                return Progress::more_if(!self.complete());
            }
        }
        Progress::Done
    }

    /// Takes the pixels of `damage` from `pixels`, which have this frame's size, until `deadline`
    /// passes; returns what is left of the damage. A frame that is not complete takes nothing.
    pub fn update(
        &mut self,
        damage: Area,
        pixels: &dyn Pixels,
        deadline: &mut Deadline,
    ) -> Option<Area> {
        if !self.complete() {
            return Some(damage);
        }
        let stride = self.stride();
        let first = usize::from(damage.y) * stride + 4 * usize::from(damage.x);
        let rows = pixels.copy(damage, &mut self.data[first..], stride, deadline);
        damage.split_rows(rows).1
    }

    /// Copies the pixels of `area`, with `cursor` over them, to `out`, without padding. Missing
    /// pixels are black.
    pub fn read(&self, area: Area, cursor: &Cursor, out: &mut Vec<u8>) {
        let row = 4 * usize::from(area.size.width);
        out.clear();
        out.resize(row * usize::from(area.size.height), 0);
        let here = area.intersection(Area::whole(self.size));
        if let Some(here) = here.filter(|here| (here.x, here.y) == (area.x, area.y)) {
            let left = 4 * usize::from(here.x);
            let len = 4 * usize::from(here.size.width);
            let rows = self.data.chunks_exact(self.stride()).skip(here.y.into());
            let rows = rows.take(here.size.height.into());
            for (from, to) in rows.zip(out.chunks_exact_mut(row)) {
                to[..len].copy_from_slice(&from[left..left + len]);
            }
        }
        compose(out, area, cursor);
    }

    /// Puts `cursor` over the picture, where it is inside.
    pub fn compose(&mut self, cursor: &Cursor) {
        if self.complete() {
            compose(&mut self.data, Area::whole(self.size), cursor);
        }
    }
}

/// Rows of a strip of `area`, about 256 KiB.
fn rows_of(area: Area) -> u32 {
    const STRIP: u64 = 256 << 10;
    (STRIP / area.size.row_bytes()) as u32
}

/// Puts `cursor` over `pixels`, which are those of `area`, without padding.
fn compose(pixels: &mut [u8], area: Area, cursor: &Cursor) {
    let Some(image) = &cursor.image else { return };
    let extent = i64::from(CURSOR_EXTENT);
    let (left, top) = (i64::from(area.x), i64::from(area.y));
    // Rows and columns of the cursor that lie in the area.
    let visible = |at: i32, start: i64, len: i64| {
        let at = i64::from(at);
        at.max(start)..(at + extent).min(start + len)
    };
    let width = i64::from(area.size.width.get());
    for y in visible(cursor.y, top, area.size.height.get().into()) {
        for x in visible(cursor.x, left, width) {
            let from = (y - i64::from(cursor.y)) * extent + (x - i64::from(cursor.x));
            let to = (y - top) * width + (x - left);
            // Both are inside their pictures, and so not negative.
            let (Ok(from), Ok(to)) = (usize::try_from(4 * from), usize::try_from(4 * to)) else {
                continue;
            };
            blend(&mut pixels[to..to + 4], &image[from..from + 4]);
        }
    }
}

/// Puts `over`, whose colours are already multiplied by its alpha, over `under`.
fn blend(under: &mut [u8], over: &[u8]) {
    let through = 255 - u32::from(over[3]);
    for channel in 0..3 {
        let behind = (u32::from(under[channel]) * through + 127) / 255;
        let sum = u32::from(over[channel]) + behind;
        under[channel] = sum.saturating_u8();
    }
}

/// A picture and the cursor that was over it.
#[derive(Debug)]
pub struct FrameSnapshot {
    /// The picture, without the cursor.
    pub frame: Frame,
    /// The cursor.
    pub cursor: Cursor,
}

impl FrameSnapshot {
    /// The picture as a person would see it.
    pub fn composed(mut self) -> Frame {
        self.frame.compose(&self.cursor);
        self.frame
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::display::CURSOR_BYTES;
    use crate::display::testing::{Plain, frame};

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
            (left, top) in (0..90u16, 0..70u16),
        ) {
            let size = Size::new(100, 80);
            let cursor = cursor(x, y, [1, 2, 3, 255]);
            let mut picture = frame(size, 0);
            let at = |start: i32, n: usize| {
                let n = i64::try_from(n).unwrap() - i64::from(start);
                (0..64).contains(&n)
            };
            // A part of the picture that is read, then the picture itself.
            let area = Area { x: left, y: top, size: Size::new(10, 10) };
            let mut part = Vec::new();
            picture.read(area, &cursor, &mut part);
            for (i, pixel) in part.as_chunks::<4>().0.iter().enumerate() {
                let inside = at(x, usize::from(left) + i % 10) && at(y, usize::from(top) + i / 10);
                prop_assert_eq!(&pixel[..3], if inside { &[1, 2, 3] } else { &[0, 0, 0] });
            }
            picture.compose(&cursor);
            for (i, pixel) in picture.data().as_chunks::<4>().0.iter().enumerate() {
                let inside = at(x, i % 100) && at(y, i / 100);
                prop_assert_eq!(&pixel[..3], if inside { &[1, 2, 3] } else { &[0, 0, 0] });
            }
        }

        /// However small the steps, the picture is the same, and no step does more than its share.
        #[test]
        fn strips_make_the_same_picture(work in 1..4000u64, damage in (0..20u16, 0..20u16, 1..10u16, 1..10u16)) {
            let size = Size::new(30, 30);
            let mut picture = Frame::new(size, &Budget::bytes("test", 3600)).unwrap();
            let (x, y, width, height) = damage;
            let damage = Area { x, y, size: Size::new(width, height) };
            loop {
                let mut deadline = Deadline::of_work(work);
                if !picture.complete() {
                    let left = picture.update(damage, &Plain(size, 7), &mut Deadline::never());
                    prop_assert_eq!(left, Some(damage));
                }
                let progress = picture.fill(&Plain(size, 5), &mut deadline);
                prop_assert!(deadline.spent() < work + 120);
                if progress == Progress::Done {
                    break;
                }
            }
            prop_assert!(picture.data().iter().all(|byte| *byte == 5) && picture.complete());
            let mut left = Some(damage);
            while let Some(area) = left {
                left = picture.update(area, &Plain(size, 9), &mut Deadline::of_work(work));
            }
            for (i, byte) in picture.data().iter().enumerate() {
                let at = Area { x: (i / 4 % 30) as u16, y: (i / 120) as u16, size: Size::new(1, 1) };
                prop_assert_eq!(*byte, if at.intersection(damage).is_some() { 9 } else { 5 });
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
        // A cursor that is not premultiplied appears too bright, without overflow.
        blend(&mut under, &[255, 255, 255, 0]);
        assert_eq!(&under[..3], &[255, 255, 255]);
    }

    #[test]
    fn a_picture_beyond_the_budget_is_refused_and_one_that_goes_is_given_back() {
        let budget = Budget::bytes("test", 1000);
        let size = Size::new(10, 10);
        let first = Frame::new(size, &budget).unwrap();
        let second = Frame::new(Size::new(16, 16), &budget);
        assert!(matches!(second, Err(FrameError::Budget(_))), "{second:?}");
        assert_eq!(budget.used(), 400);
        drop(first);
        assert_eq!(budget.used(), 0);
    }
}
