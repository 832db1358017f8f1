// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compressed pages decompress to the original, and damaged data causes at most an error.

use mm::store::{Codec, Lz4, Zstd};
use mm::units::PAGE_BYTES;
use proptest::prelude::*;

fn all() -> [Box<dyn Codec>; 3] {
    [Box::new(Lz4), Box::new(Zstd { level: 1 }), Box::new(Zstd::default())]
}

/// Pages of few and of many different bytes, with and without repetition.
fn page() -> impl Strategy<Value = Box<[u8; PAGE_BYTES]>> {
    (1..=PAGE_BYTES, prop::collection::vec(any::<u8>(), 1..PAGE_BYTES)).prop_map(|(len, bytes)| {
        let mut page = Box::new([0; PAGE_BYTES]);
        for (to, from) in page[..len].iter_mut().zip(bytes.iter().cycle()) {
            *to = *from;
        }
        page
    })
}

#[test]
fn a_page_of_zeroes_becomes_small_and_noise_does_not() {
    let mut state = 1_u64;
    let noise: [u8; PAGE_BYTES] = std::array::from_fn(|_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 56) as u8
    });
    for codec in all() {
        let mut worker = codec.worker(PAGE_BYTES).unwrap();
        let small = worker.compress(&[0; PAGE_BYTES]).map(<[u8]>::len);
        assert!(small.is_some_and(|len| len < 64), "{}: {small:?}", codec.name());
        assert_eq!(worker.compress(&noise), None, "{}", codec.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pages_come_back(pages in prop::collection::vec(page(), 1..8)) {
        for codec in all() {
            // One worker for all, as a thread has it: nothing of one page may get into the next.
            let mut worker = codec.worker(PAGE_BYTES).unwrap();
            for page in &pages {
                let Some(data) = worker.compress(&page[..]).map(<[u8]>::to_vec) else { continue };
                prop_assert!(data.len() < PAGE_BYTES);
                let mut back = [0xa5; PAGE_BYTES];
                worker.decompress(&data, &mut back).unwrap();
                prop_assert_eq!(&back, &**page);
            }
        }
    }

    #[test]
    fn damage_is_survived(page in page(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for codec in all() {
            let mut worker = codec.worker(PAGE_BYTES).unwrap();
            let Some(mut data) = worker.compress(&page[..]).map(<[u8]>::to_vec) else { continue };
            let mut back = [0; PAGE_BYTES];
            prop_assert!(worker.decompress(&data[..at.index(data.len())], &mut back).is_err());
            let at = at.index(data.len());
            data[at] = byte;
            // It may still be a page, if not that one.
            let _ = worker.decompress(&data, &mut back);
            // The next page is not affected.
            let data = worker.compress(&[7; PAGE_BYTES]).map(<[u8]>::to_vec).unwrap();
            worker.decompress(&data, &mut back).unwrap();
            prop_assert_eq!(back, [7; PAGE_BYTES]);
        }
    }
}
