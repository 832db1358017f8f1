// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checksums that the guest and the harness compute alike: 64-bit FNV-1a of a picture that a guest
//! drew, and a quicker one of pages.

/// The sum of no bytes.
pub const START: u64 = 0xcbf2_9ce4_8422_2325;

/// The sum with one more byte.
#[must_use]
pub fn add(sum: u64, byte: u8) -> u64 {
    (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

/// The sum of pages, eight bytes at a time: a guest in an emulated machine has no time for single
/// ones.
#[must_use]
pub fn of_pages(pages: &[u8]) -> u64 {
    let words = pages.as_chunks::<8>().0;
    words.iter().fold(START, |sum, word| {
        (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_tell_pages_apart() {
        let mut page = vec![7; 4096];
        let before = of_pages(&page);
        page[4095] ^= 1;
        assert_ne!(of_pages(&page), before);
        page[4095] ^= 1;
        assert_eq!(of_pages(&page), before);
    }

    #[test]
    fn checksum_is_fnv_1a() {
        assert_eq!(b"foobar".iter().copied().fold(START, add), 0x8594_4171_f739_67e8);
    }
}
