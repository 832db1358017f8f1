// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Plain numbers of one width in another.
//!
//! There are three cases. A number that fits for certain is converted by `From` or [`usize_from`].
//! One that may not fit, and must, is converted by `TryFrom`, and the error is handled. One that is
//! only told, compared or waited for may be replaced by the nearest that fits:
//! [`SaturatingInto`] says so.

const _: () = assert!(usize::BITS == 64, "Ballast runs on x86-64 only");

/// `number` as a length or an index in this process; nothing is lost.
pub const fn usize_from(number: u64) -> usize {
    number as usize
}

/// Conversions that give the nearest number if the number itself does not fit.
///
/// For figures and limits. Not for addresses or for lengths of what is accessed: a wrong one of these
/// is an error.
///
/// ```
/// use mm::units::SaturatingInto;
///
/// assert_eq!(70_000u64.saturating_u16(), u16::MAX);
/// assert_eq!((-1i64).saturating_u64(), 0);
/// assert_eq!(u128::MAX.saturating_i64(), i64::MAX);
/// ```
pub trait SaturatingInto: Copy {
    /// The nearest number of 8 bits.
    fn saturating_u8(self) -> u8;
    /// The nearest number of 16 bits.
    fn saturating_u16(self) -> u16;
    /// The nearest number of 32 bits.
    fn saturating_u32(self) -> u32;
    /// The nearest number of 64 bits.
    fn saturating_u64(self) -> u64;
    /// The nearest signed number of 64 bits.
    fn saturating_i64(self) -> i64;
}

macro_rules! saturating_into {
    ($($from:ty),*) => {$(
        impl SaturatingInto for $from {
            saturating_into! { $from; saturating_u8 u8, saturating_u16 u16, saturating_u32 u32,
                saturating_u64 u64, saturating_i64 i64 }
        }
    )*};
    ($from:ty; $($name:ident $to:ty),*) => {$(
        fn $name(self) -> $to {
            <$to>::try_from(self).unwrap_or(if self > 0 { <$to>::MAX } else { <$to>::MIN })
        }
    )*};
}

saturating_into!(u32, u64, u128, usize, i32, i64, i128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beyond_either_end_become_the_nearest() {
        assert_eq!((255u32.saturating_u8(), 256u32.saturating_u8()), (255, 255));
        assert_eq!((7usize.saturating_u32(), usize::MAX.saturating_u32()), (7, u32::MAX));
        assert_eq!((i64::MIN.saturating_u32(), i64::MAX.saturating_u32()), (0, u32::MAX));
        assert_eq!((i128::MIN.saturating_i64(), i128::MAX.saturating_i64()), (i64::MIN, i64::MAX));
        assert_eq!(u64::MAX.saturating_u64(), u64::MAX);
    }
}
