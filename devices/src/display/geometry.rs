// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sizes and rectangles in pixels, as untrusted as the guest that sends them.

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Size {
    /// A size of `width` by `height` pixels.
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// True when there is not one pixel in it.
    pub const fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// Bytes of such an image at four bytes a pixel, without padding.
    pub const fn bytes(self) -> u64 {
        // Two u32 multiplied fit in 64 bits, and times four is checked by the saturation.
        (self.width as u64).saturating_mul(self.height as u64).saturating_mul(4)
    }
}

/// A rectangle in pixels, with its origin at the top left.
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
        Self::new(0, 0, size.width, size.height)
    }

    /// Its width and height.
    pub const fn size(self) -> Size {
        Size::new(self.width, self.height)
    }

    /// True when there is not one pixel in it.
    pub const fn is_empty(self) -> bool {
        self.size().is_empty()
    }

    /// First column to the right of it; 64 bits, since the sum may not fit in 32.
    pub const fn right(self) -> u64 {
        self.x as u64 + self.width as u64
    }

    /// First row below it.
    pub const fn bottom(self) -> u64 {
        self.y as u64 + self.height as u64
    }

    /// True when it has pixels and all of them lie inside `size`.
    pub const fn fits(self, size: Size) -> bool {
        !self.is_empty() && self.right() <= size.width as u64 && self.bottom() <= size.height as u64
    }

    /// The pixels that both have, if any.
    pub fn intersection(self, other: Rect) -> Option<Rect> {
        let x = self.x.max(other.x);
        let y = self.y.max(other.y);
        let right = self.right().min(other.right());
        let bottom = self.bottom().min(other.bottom());
        let width = u32::try_from(right.checked_sub(u64::from(x))?).ok()?;
        let height = u32::try_from(bottom.checked_sub(u64::from(y))?).ok()?;
        let both = Rect::new(x, y, width, height);
        (!both.is_empty()).then_some(both)
    }

    /// The same pixels counted from (`x`, `y`); the caller knows that they lie right of and below.
    pub fn relative_to(self, x: u32, y: u32) -> Rect {
        Rect { x: self.x.saturating_sub(x), y: self.y.saturating_sub(y), ..self }
    }

    /// The smallest rectangle that holds both.
    pub fn union(self, other: Rect) -> Rect {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let x = self.x.min(other.x);
        let y = self.y.min(other.y);
        let right = self.right().max(other.right()) - u64::from(x);
        let bottom = self.bottom().max(other.bottom()) - u64::from(y);
        let clamp = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Rect::new(x, y, clamp(right), clamp(bottom))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rect() -> impl Strategy<Value = Rect> {
        (0..40u32, 0..40u32, 0..40u32, 0..40u32).prop_map(|(x, y, w, h)| Rect::new(x, y, w, h))
    }

    fn holds(r: Rect, x: u64, y: u64) -> bool {
        x >= u64::from(r.x) && x < r.right() && y >= u64::from(r.y) && y < r.bottom()
    }

    proptest! {
        #[test]
        fn intersection_is_exactly_the_common_pixels(a in rect(), b in rect()) {
            let both = a.intersection(b).unwrap_or_default();
            for y in 0..80 {
                for x in 0..80 {
                    prop_assert_eq!(holds(both, x, y), holds(a, x, y) && holds(b, x, y));
                }
            }
        }

        #[test]
        fn union_holds_both_and_touches_their_edges(a in rect(), b in rect()) {
            let u = a.union(b);
            for r in [a, b].into_iter().filter(|r| !r.is_empty()) {
                prop_assert_eq!(r.intersection(u), Some(r));
            }
            if !a.is_empty() && !b.is_empty() {
                prop_assert_eq!(u.right(), a.right().max(b.right()));
                prop_assert_eq!(u.bottom(), a.bottom().max(b.bottom()));
            }
        }
    }

    #[test]
    fn edges_that_leave_32_bits_do_not_wrap() {
        let far = Rect::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX);
        assert!(!far.fits(Size::new(u32::MAX, u32::MAX)));
        assert_eq!(far.intersection(Rect::new(0, 0, 64, 64)), None);
        assert!(!Rect::new(0, 0, 0, 4).fits(Size::new(8, 8)));
        assert!(Rect::new(4, 4, 4, 4).fits(Size::new(8, 8)));
    }
}
