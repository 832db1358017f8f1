// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sizes and rectangles in pixels.
//!
//! What a guest sends is a [`Rect`] of any numbers, or two numbers that may be a [`Size`]. One
//! check on entry turns it into an [`Area`] or a [`Size`]; both have 16-bit extents, as RFB and PNG
//! readers expect, so later code never truncates or saturates.

use std::num::NonZeroU16;

/// Pixels of a row that are copied at one time; wider areas are copied in columns.
pub const WIDE: u16 = 2048;

/// A width or a height: 1 to 65,535 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent(NonZeroU16);

impl Extent {
    /// An extent of `pixels`, if there is one: neither 0 nor more than 65,535.
    pub fn new(pixels: u32) -> Option<Self> {
        u16::try_from(pixels).ok().and_then(NonZeroU16::new).map(Self)
    }

    /// Pixels.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl From<Extent> for u16 {
    fn from(extent: Extent) -> Self {
        extent.get()
    }
}

impl From<Extent> for u32 {
    fn from(extent: Extent) -> Self {
        Self::from(extent.get())
    }
}

impl From<Extent> for u64 {
    fn from(extent: Extent) -> Self {
        Self::from(extent.get())
    }
}

impl From<Extent> for usize {
    fn from(extent: Extent) -> Self {
        Self::from(extent.get())
    }
}

impl std::fmt::Display for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Width and height in pixels; it has at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Pixels in a row.
    pub width: Extent,
    /// Rows.
    pub height: Extent,
}

impl Size {
    /// A size known when the program is written.
    ///
    /// # Panics
    ///
    /// If an extent is 0.
    pub const fn new(width: u16, height: u16) -> Self {
        match (NonZeroU16::new(width), NonZeroU16::new(height)) {
            (Some(width), Some(height)) => Self { width: Extent(width), height: Extent(height) },
            _ => panic!("an extent is 0"),
        }
    }

    /// The size that a guest or a person names, if both numbers are an [`Extent`].
    pub fn checked(width: u32, height: u32) -> Option<Self> {
        Some(Self { width: Extent::new(width)?, height: Extent::new(height)? })
    }

    /// Bytes per row at four bytes per pixel, without padding.
    pub const fn row_bytes(self) -> u64 {
        4 * self.width.get() as u64
    }

    /// Bytes of such a picture at four bytes a pixel, without padding; less than 16 GiB.
    pub const fn bytes(self) -> u64 {
        self.row_bytes() * self.height.get() as u64
    }
}

/// A rectangle as a guest sends it: any numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rect {
    /// Left edge.
    pub x: u32,
    /// Top edge.
    pub y: u32,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Rect {
    /// A rectangle from its corner and size.
    pub const fn new(x: u32, y: u32, width: u32, height: u32) -> Self {
        Self { x, y, width, height }
    }

    /// The rectangle that covers `size` from the origin.
    pub const fn whole(size: Size) -> Self {
        Self::new(0, 0, size.width.get() as u32, size.height.get() as u32)
    }

    /// True when there is not one pixel in it.
    pub const fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// The same rectangle, if it has pixels and all of them lie inside `size`.
    pub fn within(self, size: Size) -> Option<Area> {
        let end = |start: u32, extent: u32| u64::from(start) + u64::from(extent);
        let inside = end(self.x, self.width) <= size.width.into()
            && end(self.y, self.height) <= size.height.into();
        let size = Size::checked(self.width, self.height).filter(|_| inside)?;
        Some(Area { x: u16::try_from(self.x).ok()?, y: u16::try_from(self.y).ok()?, size })
    }

    /// The part of it that lies in `area`, if any.
    pub fn clip(self, area: Area) -> Option<Area> {
        let end = |start: u32, extent: u32| u64::from(start) + u64::from(extent);
        let x = self.x.max(area.x.into());
        let y = self.y.max(area.y.into());
        let right = end(self.x, self.width).min(area.right().into());
        let bottom = end(self.y, self.height).min(area.bottom().into());
        let width = u32::try_from(right.checked_sub(x.into())?).ok()?;
        let height = u32::try_from(bottom.checked_sub(y.into())?).ok()?;
        let size = Size::checked(width, height)?;
        Some(Area { x: u16::try_from(x).ok()?, y: u16::try_from(y).ok()?, size })
    }
}

impl From<Area> for Rect {
    fn from(area: Area) -> Self {
        let Area { x, y, size } = area;
        Self::new(x.into(), y.into(), size.width.into(), size.height.into())
    }
}

/// A rectangle inside a picture; it has at least one pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Left edge.
    pub x: u16,
    /// Top edge.
    pub y: u16,
    /// Width and height.
    pub size: Size,
}

impl Area {
    /// The area that covers `size` from the origin.
    pub const fn whole(size: Size) -> Self {
        Self { x: 0, y: 0, size }
    }

    /// First column to the right of it.
    pub fn right(self) -> u32 {
        u32::from(self.x) + u32::from(self.size.width)
    }

    /// First row below it.
    pub fn bottom(self) -> u32 {
        u32::from(self.y) + u32::from(self.size.height)
    }

    /// The pixels that both have, if any.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Rect::from(self).clip(other)
    }

    /// The smallest area that holds both; both are areas of the same picture.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let width = self.right().max(other.right()) - u32::from(x);
        let height = self.bottom().max(other.bottom()) - u32::from(y);
        // Of areas of one picture it lies in that picture, so that this is what it is.
        Size::checked(width, height).map_or(self, |size| Self { x, y, size })
    }

    /// The same pixels counted from the corner of `outer`, which holds them.
    #[must_use]
    pub fn relative_to(self, outer: Self) -> Self {
        Self { x: self.x.saturating_sub(outer.x), y: self.y.saturating_sub(outer.y), ..self }
    }

    /// Its pixels in columns of at most [`WIDE`] pixels, from left to right.
    pub fn columns(self) -> impl Iterator<Item = Self> {
        let (left, right) = (u32::from(self.x), self.right());
        (left..right).step_by(WIDE.into()).filter_map(move |x| {
            let width = Extent::new((right - x).min(WIDE.into()))?;
            Some(Self { x: u16::try_from(x).ok()?, size: Size { width, ..self.size }, ..self })
        })
    }

    /// Its first `rows` rows, at least one, and the rest, if any.
    pub fn split_rows(self, rows: u32) -> (Self, Option<Self>) {
        let height = u32::from(self.size.height);
        let rows = rows.clamp(1, height);
        let part = |skip: u32, rows: u32| {
            let y = u16::try_from(u32::from(self.y) + skip).ok()?;
            let size = Size { height: Extent::new(rows)?, ..self.size };
            Some(Self { y, size, ..self })
        };
        (part(0, rows).unwrap_or(self), part(rows, height - rows))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn area() -> impl Strategy<Value = Area> {
        (0..40u16, 0..40u16, 1..40u16, 1..40u16).prop_map(|(x, y, w, h)| Area {
            x,
            y,
            size: Size::new(w, h),
        })
    }

    fn rect() -> impl Strategy<Value = Rect> {
        let side = || prop_oneof![0..50u32, any::<u32>()];
        (side(), side(), side(), side()).prop_map(|(x, y, w, h)| Rect::new(x, y, w, h))
    }

    fn holds(r: Rect, x: u64, y: u64) -> bool {
        (u64::from(r.x)..u64::from(r.x) + u64::from(r.width)).contains(&x)
            && (u64::from(r.y)..u64::from(r.y) + u64::from(r.height)).contains(&y)
    }

    proptest! {
        #[test]
        fn a_clip_is_exactly_the_common_pixels(a in rect(), b in area()) {
            let both = a.clip(b).map_or(Rect::default(), Rect::from);
            for y in 0..90 {
                for x in 0..90 {
                    prop_assert_eq!(holds(both, x, y), holds(a, x, y) && holds(b.into(), x, y));
                }
            }
        }

        #[test]
        fn a_rectangle_within_a_size_is_its_own_clip(a in rect(), size in area()) {
            let whole = Area::whole(size.size);
            let within = a.within(size.size);
            prop_assert_eq!(within, a.clip(whole).filter(|clip| Rect::from(*clip) == a));
        }

        #[test]
        fn a_union_holds_both_and_touches_their_edges(a in area(), b in area()) {
            let u = a.union(b);
            prop_assert_eq!(a.intersection(u), Some(a));
            prop_assert_eq!(b.intersection(u), Some(b));
            prop_assert_eq!((u.x, u.y), (a.x.min(b.x), a.y.min(b.y)));
            prop_assert_eq!(u.right(), a.right().max(b.right()));
            prop_assert_eq!(u.bottom(), a.bottom().max(b.bottom()));
        }

        #[test]
        fn columns_lose_no_pixel(x in 0..9000u16, width in 1..9000u16, height in 1..9u16) {
            let area = Area { x, y: 7, size: Size::new(width, height) };
            let columns: Vec<Area> = area.columns().collect();
            let widths = columns.iter().map(|column| column.size.width.get());
            prop_assert!(widths.clone().all(|width| width <= WIDE));
            prop_assert_eq!(widths.map(u32::from).sum::<u32>(), u32::from(width));
            prop_assert!(columns.is_sorted_by(|a, b| a.right() == u32::from(b.x)));
            prop_assert_eq!(columns.into_iter().reduce(Area::union), Some(area));
        }

        #[test]
        fn split_rows_lose_no_row(a in area(), rows in 0..60u32) {
            let (first, rest) = a.split_rows(rows);
            prop_assert_eq!(first.y, a.y);
            match rest {
                Some(rest) => {
                    prop_assert_eq!(u32::from(first.size.height), rows.max(1));
                    prop_assert_eq!(u32::from(rest.y), first.bottom());
                    prop_assert_eq!(rest.bottom(), a.bottom());
                    prop_assert_eq!((rest.x, rest.size.width), (a.x, a.size.width));
                }
                None => prop_assert_eq!(first, a),
            }
        }
    }

    #[test]
    fn extents_end_at_16_bits() {
        assert_eq!(Extent::new(0), None);
        assert_eq!(Extent::new(65_535).map(Extent::get), Some(65_535));
        assert_eq!(Extent::new(65_536), None);
        assert_eq!(Size::checked(70_000, 1), None);
        assert_eq!(Size::checked(65_535, 65_535).map(Size::bytes), Some(4 * 65_535 * 65_535));
    }

    #[test]
    fn edges_that_leave_32_bits_do_not_wrap() {
        let far = Rect::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(far.within(Size::new(u16::MAX, u16::MAX)), None);
        assert_eq!(far.clip(Area::whole(Size::new(64, 64))), None);
        assert_eq!(Rect::new(0, 0, 0, 4).within(Size::new(8, 8)), None);
        assert!(Rect::new(4, 4, 4, 4).within(Size::new(8, 8)).is_some());
    }
}
