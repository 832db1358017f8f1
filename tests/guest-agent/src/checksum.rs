// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! 64-bit FNV-1a, by which the harness knows a picture that a guest drew.

/// The sum of no bytes.
pub const START: u64 = 0xcbf2_9ce4_8422_2325;

/// The sum with one more byte.
#[must_use]
pub fn add(sum: u64, byte: u8) -> u64 {
    (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_fnv_1a() {
        assert_eq!(b"foobar".iter().copied().fold(START, add), 0x8594_4171_f739_67e8);
    }
}
