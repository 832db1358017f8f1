// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of compressing again with a second codec.

use super::*;

fn two_codecs(frames: &Arc<FramePool>) -> Store {
    let config = StoreConfig { capacity: 10_000, zs: ZsConfig::default() };
    let second: Box<dyn Codec> = Box::new(Zstd { level: 5 });
    Store::with_second(frames, Box::new(Lz4), Some(second), config).unwrap()
}

/// Bytes of few kinds in no order: a codec that counts them does better than one that looks for
/// repetitions.
fn dense_text(seed: u64) -> Page {
    let mut page = page(seed, PAGE_BYTES);
    for byte in &mut page {
        *byte = b"etaoins "[usize::from(*byte) % 8];
    }
    page
}

#[test]
fn repacked_pages_are_smaller_and_come_back() {
    let frames = frames(2);
    let store = two_codecs(&frames);
    let pages: Vec<Page> = (0..32).map(dense_text).collect();
    store.put_batch((0..).map(Key).zip(&pages)).unwrap();
    store.put(Key(40), &page(7, 0)).unwrap();
    store.put(Key(41), &page(7, PAGE_BYTES)).unwrap();
    let before = store.mm_stat();
    let gained: usize = (0..32).map(|key| store.repack(Key(key)).unwrap()).sum();
    assert!(gained > 32 * 200, "{gained}");
    let after = store.mm_stat();
    assert_eq!(before.compr_data_size - after.compr_data_size, gained as u64);
    assert_eq!(before.orig_data_size, after.orig_data_size);
    // Once is enough; words, noise and what is not there gain nothing.
    for key in [0, 40, 41, 50] {
        assert_eq!(store.repack(Key(key)).unwrap(), 0, "key {key}");
    }
    let mut out = vec![[0; PAGE_BYTES]; 32];
    store.get_batch((0..).map(Key).zip(&mut out)).unwrap();
    assert!(out == pages);
    store.take(Key(3), &mut out[0]).unwrap();
    assert!(out[0] == pages[3] && !store.contains(Key(3)).unwrap());
    (4..12).for_each(|key| store.put(Key(key), &pages[9]).unwrap());
    store.get(Key(4), &mut out[0]).unwrap();
    assert!(out[0] == pages[9]);
    // What is left of the bundle goes into a new one, with what was stored since.
    assert!(store.repack(Key(15)).unwrap() > 0);
    for key in (0..32).filter(|key| *key != 3) {
        store.get(Key(key), &mut out[0]).unwrap();
        assert!(
            out[0] == pages[if (4..12).contains(&key) { 9 } else { key as usize }],
            "key {key}"
        );
    }
    for key in 0..50 {
        store.remove(Key(key)).unwrap();
    }
    assert_eq!((store.mm_stat().compr_data_size, store.zs().stats().objects), (0, 0));
}

/// Readers, writers and repacking at once: no reader sees anything but a page that was stored.
#[test]
fn pages_are_read_and_replaced_while_they_are_repacked() {
    const KEYS: u32 = 8;
    let frames = frames(2);
    let store = two_codecs(&frames);
    (0..KEYS).for_each(|key| store.put(Key(key), &dense_text(key.into())).unwrap());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                for key in 0..KEYS {
                    store.repack(Key(key)).unwrap();
                }
            }
        });
        scope.spawn(|| {
            let mut out = [0; PAGE_BYTES];
            while !stop.load(SeqCst) {
                for key in 0..KEYS {
                    store.get(Key(key), &mut out).unwrap();
                    let stored = (0..4).any(|round| out == dense_text((key + round * KEYS).into()));
                    assert!(stored, "key {key}");
                }
            }
        });
        for round in 0..200 {
            for key in 0..KEYS {
                store.put(Key(key), &dense_text((key + round % 4 * KEYS).into())).unwrap();
            }
        }
        stop.store(true, SeqCst);
    });
}

#[test]
fn a_store_without_a_second_codec_repacks_nothing() {
    let frames = frames(2);
    let store = store(&frames, Box::new(Lz4));
    store.put(Key(1), &dense_text(1)).unwrap();
    assert_eq!(store.repack(Key(1)).unwrap(), 0);
}
