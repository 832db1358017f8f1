// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space as a run of bytes: accesses of any offset and length, clipped to it.

use mm::units::usize_from;

/// Fills `data` from `space` at `offset`; bytes beyond the end read as zero.
pub fn read_config_slice(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(from) = space.get(usize_from(offset)..) else { return };
    let len = from.len().min(data.len());
    data[..len].copy_from_slice(&from[..len]);
}

/// Writes `data` to `space` at `offset` if it fits wholly; returns whether it did.
///
/// A write beyond the end is not a field of the device: it is ignored entirely.
pub fn write_config_slice(space: &mut [u8], offset: u64, data: &[u8]) -> bool {
    let at = usize_from(offset);
    let to = at.checked_add(data.len()).map(|end| at..end).and_then(|range| space.get_mut(range));
    match to {
        Some(to) => {
            to.copy_from_slice(data);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reads_give_the_space_and_zero_beyond(offset in 0u64..40, len in 0usize..40) {
            let space: Vec<u8> = (1..=16).collect();
            let mut data = vec![0xff; len];
            read_config_slice(&space, offset, &mut data);
            for (i, byte) in data.iter().enumerate() {
                let at = usize::try_from(offset).unwrap() + i;
                prop_assert_eq!(*byte, space.get(at).copied().unwrap_or(0));
            }
        }

        #[test]
        fn writes_are_whole_or_not_at_all(offset: u64, len in 0usize..40, near in 0u64..40) {
            for offset in [offset, near] {
                let mut space = [0u8; 16];
                let done = write_config_slice(&mut space, offset, &vec![7; len]);
                let fits = offset.checked_add(len as u64).is_some_and(|end| end <= 16);
                prop_assert_eq!(done, fits);
                let written = space.iter().filter(|byte| **byte == 7).count();
                prop_assert_eq!(written, if fits { len } else { 0 });
            }
        }
    }
}
